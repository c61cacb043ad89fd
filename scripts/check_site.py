"""Open every page of the built documentation in headless Chromium and look at what a reader would see.

    python scripts/check_site.py                  # after scripts/build_docs.py
    python scripts/check_site.py --shots DIR      # also screenshots of some pages

Each page, in the light and in the dark theme, at a desk's and at a phone's width: no errors on the console, no
horizontal scrolling, no picture that is missing or has no alternative text, no formula left as TeX, no page without
text, no link to nowhere; and a search leads to a symbol. Served on the loopback interface; nothing else is reached.
Needs Chromium and its driver (Debian's packages chromium and chromium-driver) and the extra `site`.
"""
import argparse, shutil, sys, threading, time
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from urllib.parse import unquote, urldefrag, urljoin

from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.chrome.service import Service

DOCS = Path(__file__).resolve().parent.parent/'_docs'
WIDTHS = {'desk': 1280, 'phone': 390}
SHOTS = 'index', 'patches', 'how_it_works', 'sas_segmentation', 'studies'
SYMBOL, ITS_PAGE = 'PatchEBSW', 'patches.html'

# What is wrong with the page that is open, as a list of sentences; texts of programs are not prose.
LOOK = r"""
const bad = [], root = document.documentElement;
for (const i of document.images) {
  if (!(i.getAttribute('alt')||'').trim() && i.getAttribute('role')!=='presentation') bad.push('picture without alternative text: '+i.src.slice(0, 60));
  if (i.complete && !i.naturalWidth) bad.push('missing picture: '+i.src.slice(0, 60)); }
const main = document.querySelector('main') || document.body;
if (main.innerText.trim().length < 150 && !location.pathname.endsWith('search.html')) bad.push('hardly any text');
const walker = document.createTreeWalker(main, NodeFilter.SHOW_TEXT);
while (walker.nextNode()) {
  const t = walker.currentNode;
  if (t.parentElement.closest('pre,code,script,style,math,annotation,.cell-output')) continue;
  const tex = t.data.match(/\$\$|\\\(|\\\[|\\(frac|sum|lambda|tilde|mathcal)/);
  if (tex) bad.push('formula left as TeX: '+t.data.trim().slice(0, 60)); }
return bad;
"""
WIDE = r"""
const root = document.documentElement, over = root.scrollWidth-root.clientWidth;
if (over<=1) return null;
let worst = null, far = root.clientWidth+1;
for (const e of document.querySelectorAll('main *, nav *, header *')) { const r = e.getBoundingClientRect().right; if (r>far) { far = r; worst = e; } }
return over+' pixels too wide'+(worst ? ': '+worst.tagName+' '+(worst.className||'')+' '+(worst.innerText||'').slice(0, 40) : '');
"""
LINKS = "return [[...document.querySelectorAll('a[href]')].map(a => a.getAttribute('href')), [...document.querySelectorAll('[id]')].map(e => e.id)]"


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
    chrome, driver = shutil.which('chromium') or shutil.which('google-chrome'), shutil.which('chromedriver')
    if not (chrome and driver):
        sys.exit('check_site: Chromium or its driver is missing (Debian: apt-get install chromium chromium-driver)')
    o = webdriver.ChromeOptions()
    o.binary_location = chrome
    for flag in ('headless=new', 'no-sandbox', 'disable-gpu', 'disable-quic', 'no-first-run', 'disable-background-networking', 'disable-component-update', 'disable-sync', 'hide-scrollbars', 'force-device-scale-factor=1'):
        o.add_argument(f'--{flag}')
    o.set_capability('goog:loggingPrefs', {'browser': 'ALL'})
    return webdriver.Chrome(options=o, service=Service(driver))


def set_theme(b, theme):
    b.execute_cdp_cmd('Emulation.setEmulatedMedia', {'features': [{'name': 'prefers-color-scheme', 'value': theme}]})
def set_width(b, width):
    b.execute_cdp_cmd('Emulation.setDeviceMetricsOverride', {'width': WIDTHS[width], 'height': 900, 'deviceScaleFactor': 1, 'mobile': width == 'phone'})


def look(b, page, theme, shots):
    "What is wrong with a page in a theme."
    bad = list(b.execute_script(LOOK))
    for width in WIDTHS:
        set_width(b, width)
        if wide := b.execute_script(WIDE):
            bad.append(f'{width}: {wide}')
        if shots and page.stem in SHOTS:
            time.sleep(.6) # the sidebar slides away
            b.save_screenshot(str(shots/f'{page.stem}_{theme}_{width}.png'))
    set_width(b, 'desk')
    bad += [f'console: {e["message"][:200]}' for e in b.get_log('browser') if e['level'] == 'SEVERE']
    return [f'{page.name} ({theme}): {what}' for what in bad]


def broken_links(found, top):
    "Links between pages that lead nowhere; `found`: page -> links, names of places."
    bad = []
    for page, (links, _) in found.items():
        for link in sorted(set(links)):
            if link.startswith(('http:', 'https:', 'mailto:', 'javascript:')):
                continue
            url, place = urldefrag(urljoin(page, link))
            target = unquote(url) or page
            if not (top/target).exists():
                bad.append(f'{page}: link to {link}, which is not there')
            elif place and target in found and unquote(place) not in found[target][1]:
                bad.append(f'{page}: link to {link}, and {target} has no such place')
    return bad


def search(b, address):
    "What is wrong with the search for a symbol."
    b.get(f'{address}/index.html')
    box = b.find_element(By.CSS_SELECTOR, '.smalldocs-search input')
    box.send_keys(SYMBOL)
    for _ in range(50):
        time.sleep(.1)
        hits = [a for a in b.find_elements(By.CSS_SELECTOR, '.smalldocs-search-results a') if ITS_PAGE in (a.get_attribute('href') or '')]
        if hits:
            break
    else:
        return [f'search: {SYMBOL} does not lead to {ITS_PAGE}']
    hits[0].click()
    time.sleep(.5)
    return [] if ITS_PAGE in b.current_url and SYMBOL in b.find_element(By.TAG_NAME, 'main').text else [f'search: {b.current_url} does not show {SYMBOL}']


def check(top, shots=None):
    "Everything that is wrong with the site in folder `top`."
    server = ThreadingHTTPServer(('127.0.0.1', 0), partial(Quiet, directory=str(top)))
    threading.Thread(target=server.serve_forever, daemon=True).start()
    address, b, bad, found = f'http://127.0.0.1:{server.server_port}', browser(), [], {}
    try:
        for page in sorted(top.rglob('*.html')):
            name = page.relative_to(top).as_posix()
            for theme in ('light', 'dark'):
                set_theme(b, theme)
                set_width(b, 'desk')
                b.get(f'{address}/{name}')
                if theme == 'light':
                    found[name] = b.execute_script(LINKS)
                bad += look(b, page, theme, shots)
        bad += broken_links(found, top) + search(b, address)
    finally:
        b.quit()
        server.shutdown()
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
