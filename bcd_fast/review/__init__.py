"A page in the browser on which a person corrects a few masks; page.html, page.css and page.js are edited by hand."
