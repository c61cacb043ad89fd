"""Open every page of the built documentation in headless Chromium and look at what a reader would see.

    python scripts/check_site.py                  # after scripts/build_docs.py
    python scripts/check_site.py --shots DIR      # also screenshots of some pages

Each page, in the light and in the dark theme, at a desk's and at a phone's width: no errors on the console, no
horizontal scrolling, no picture that is missing or has no alternative text, no formula left as TeX, no page without
text, no link to nowhere; and a search leads to a symbol, from the top and from a folder. Served on the loopback
interface; nothing else is reached. Needs Chromium and its driver (Debian's packages chromium and chromium-driver) and
the extra `site`.
"""
import argparse, posixpath, shutil, sys, threading, time
from contextlib import contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urldefrag

from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.chrome.service import Service

DOCS = Path(__file__).resolve().parent.parent/'_docs'
WIDTHS = {'desk': 1280, 'phone': 390}
SHOTS = ('index.html', 'divergences/patches.html', 'tutorials/how_it_works.html', 'paper/sas_segmentation.html',
         'studies/studies.html')
SYMBOL, ITS_PAGE = 'PatchEBSW', 'divergences/patches.html'
SEARCHED_FROM = 'index.html', 'training/losses.html'
FLAGS = ('headless=new', 'no-sandbox', 'disable-gpu', 'disable-quic', 'no-first-run', 'disable-background-networking',
         'disable-component-update', 'disable-sync', 'hide-scrollbars', 'force-device-scale-factor=1')
ELSEWHERE = 'http:', 'https:', 'mailto:', 'javascript:' # links that are not looked at

# What is wrong with the page that is open, as a list of sentences; texts of programs are not prose.
LOOK = r"""
const bad = [], main = document.querySelector('main') || document.body;
for (const i of document.images) {
  const described = (i.getAttribute('alt')||'').trim() || i.getAttribute('role')==='presentation';
  if (!described) bad.push('picture without alternative text: '+i.src.slice(0, 60));
  if (i.complete && !i.naturalWidth) bad.push('missing picture: '+i.src.slice(0, 60));
}
const words = main.innerText.trim().length;
if (words < 150 && !location.pathname.endsWith('search.html')) bad.push('hardly any text');
const walker = document.createTreeWalker(main, NodeFilter.SHOW_TEXT);
while (walker.nextNode()) {
  const t = walker.currentNode;
  if (t.parentElement.closest('pre,code,script,style,math,annotation,.cell-output')) continue;
  const tex = t.data.match(/\$\$|\\\(|\\\[|\\(frac|sum|lambda|tilde|mathcal)/);
  if (tex) bad.push('formula left as TeX: '+t.data.trim().slice(0, 60));
}
return bad;
"""
# How far the page is too wide and what sticks out most, or null.
WIDE = r"""
const root = document.documentElement, over = root.scrollWidth-root.clientWidth;
if (over<=1) return null;
let worst = null, far = root.clientWidth+1;
for (const e of document.querySelectorAll('main *, nav *, header *')) {
  const right = e.getBoundingClientRect().right;
  if (right>far) { far = right; worst = e; }
}
const what = worst ? ': '+worst.tagName+' '+(worst.className||'')+' '+(worst.innerText||'').slice(0, 40) : '';
return over+' pixels too wide'+what;
"""
# What the page links to, and the names of its places.
LINKS = """
const links = [...document.querySelectorAll('a[href]')].map(a => a.getAttribute('href'));
return [links, [...document.querySelectorAll('[id]')].map(e => e.id)];
"""


class Quiet(SimpleHTTPRequestHandler):
    "Files of the site, without a log; there is no icon, and browsers ask for one."
    def log_message(self, *args):
        pass
    def do_GET(self):
        if self.path != '/favicon.ico':
            return super().do_GET()
        self.send_response(204)
        self.end_headers()


def browser():
    "Headless Chromium, or a sentence that says what is missing."
    chrome = shutil.which('chromium') or shutil.which('google-chrome')
    driver = shutil.which('chromedriver')
    if not (chrome and driver):
        sys.exit('check_site: Chromium or its driver is missing (Debian: apt-get install chromium chromium-driver)')
    o = webdriver.ChromeOptions()
    o.binary_location = chrome
    for flag in FLAGS:
        o.add_argument(f'--{flag}')
    o.set_capability('goog:loggingPrefs', {'browser': 'ALL'})
    return webdriver.Chrome(options=o, service=Service(driver))


def set_theme(b, theme):
    features = [{'name': 'prefers-color-scheme', 'value': theme}]
    b.execute_cdp_cmd('Emulation.setEmulatedMedia', {'features': features})


def set_width(b, width):
    screen = {'width': WIDTHS[width], 'height': 900, 'deviceScaleFactor': 1, 'mobile': width == 'phone'}
    b.execute_cdp_cmd('Emulation.setDeviceMetricsOverride', screen)


def shoot(b, page, theme, width, shots):
    "A screenshot in the folder `shots`: divergences/patches.html is divergences_patches_light_desk.png."
    time.sleep(.6) # the sidebar slides away
    name = page.removesuffix('.html').replace('/', '_')
    b.save_screenshot(str(shots/f'{name}_{theme}_{width}.png'))


def look(b, page, theme, shots):
    "What is wrong with a page in a theme."
    bad = list(b.execute_script(LOOK))
    for width in WIDTHS:
        set_width(b, width)
        wide = b.execute_script(WIDE)
        if wide:
            bad.append(f'{width}: {wide}')
        if shots and page in SHOTS:
            shoot(b, page, theme, width, shots)
    set_width(b, 'desk')
    bad += [f'console: {e["message"][:200]}' for e in b.get_log('browser') if e['level'] == 'SEVERE']
    return [f'{page} ({theme}): {what}' for what in bad]


def target_of(page, link):
    "The page that a link of `page` leads to, as a path below the top, and the place on it."
    url, place = urldefrag(link)
    path = posixpath.join(posixpath.dirname(page), unquote(url))
    return posixpath.normpath(path) if url else page, unquote(place)


def broken_link(page, link, found, top):
    "What is wrong with a link, or None."
    target, place = target_of(page, link)
    if target.startswith(('/', '..')):
        return f'{page}: link to {link}, which leaves the site'
    file = top/target/'index.html' if (top/target).is_dir() else top/target
    if not file.is_file():
        return f'{page}: link to {link}, which is not there'
    if place and target in found and place not in found[target][1]:
        return f'{page}: link to {link}, and {target} has no such place'


def broken_links(found, top):
    "Links between pages that lead nowhere; `found`: page -> links, names of places."
    local = [(page, link) for page, (links, _) in found.items() for link in sorted(set(links))
             if not link.startswith(ELSEWHERE)]
    said = [broken_link(page, link, found, top) for page, link in local]
    return [s for s in said if s]


def first_hit(b):
    "The first result that leads to the symbol's page, within five seconds, or None."
    for _ in range(50):
        time.sleep(.1)
        results = b.find_elements(By.CSS_SELECTOR, '.smalldocs-search-results a')
        hits = [a for a in results if ITS_PAGE in (a.get_attribute('href') or '')]
        if hits:
            return hits[0]


def search(b, address, page):
    "What is wrong with the search for a symbol on a page."
    b.get(f'{address}/{page}')
    b.find_element(By.CSS_SELECTOR, '.smalldocs-search input').send_keys(SYMBOL)
    hit = first_hit(b)
    if hit is None:
        return [f'search on {page}: {SYMBOL} does not lead to {ITS_PAGE}']
    hit.click()
    time.sleep(.5)
    shows = SYMBOL in b.find_element(By.TAG_NAME, 'main').text
    if b.current_url.partition('#')[0] == f'{address}/{ITS_PAGE}' and shows:
        return []
    return [f'search on {page}: {b.current_url} does not show {SYMBOL}']


@contextmanager
def served(top):
    "The address of the folder `top` on the loopback interface."
    server = ThreadingHTTPServer(('127.0.0.1', 0), partial(Quiet, directory=str(top)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    try:
        yield f'http://127.0.0.1:{server.server_port}'
    finally:
        server.shutdown()


def visit(b, address, page, shots):
    "What is wrong with a page in both themes; its links and the names of its places."
    bad = []
    for theme in ('light', 'dark'):
        set_theme(b, theme)
        set_width(b, 'desk')
        b.get(f'{address}/{page}')
        bad += look(b, page, theme, shots)
    return bad, b.execute_script(LINKS)


def check(top, shots=None):
    "Everything that is wrong with the site in folder `top`, and the number of its pages."
    bad, found = [], {}
    with served(top) as address:
        b = browser()
        try:
            for path in sorted(top.rglob('*.html')):
                page = path.relative_to(top).as_posix()
                said, found[page] = visit(b, address, page, shots)
                bad += said
            bad += broken_links(found, top)
            for page in SEARCHED_FROM:
                bad += search(b, address, page)
        finally:
            b.quit()
    return bad, len(found)


def main():
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--docs', type=Path, default=DOCS, help='folder of the site')
    p.add_argument('--shots', type=Path, help='folder for screenshots')
    a = p.parse_args()
    if not (a.docs/'index.html').is_file():
        sys.exit(f'check_site: {a.docs.name}/ holds no site: run scripts/build_docs.py first')
    if a.shots:
        a.shots.mkdir(parents=True, exist_ok=True)
    bad, n = check(a.docs, a.shots)
    print(*bad, sep='\n')
    if bad:
        sys.exit(f'check_site: {len(bad)} things to mend')
    print(f'{n} pages in two themes and two widths: fine')


if __name__ == '__main__':
    main()
