"""Draw on the page of bcd_review in headless Chromium, and save it in both themes: nbs/images/review_*.png.

    python scripts/shoot_review.py

The pictures are simulated sonar images, and the masks are made from what the simulation knows, blurred and with noise.
Needs Chromium and its driver (Debian's packages chromium and chromium-driver) and the extra `site`.
"""
import tempfile, threading, time
from pathlib import Path

import numpy as np
from PIL import Image
from scipy import ndimage
from selenium.webdriver.common.action_chains import ActionChains

from bcd_fast.data.corrected import pictures_of
from bcd_fast.data.sonar import simulate_sidescan
from bcd_fast.review.server import Server
from bcd_fast.review.session import Review
from check_site import browser, set_theme

IMAGES = Path(__file__).resolve().parent.parent/'nbs/images'
SCREEN = dict(width=1200, height=800, deviceScaleFactor=1, mobile=False)
AT_WORK = 'return S.busy || !S.mask || S.change !== S.kept || Boolean(S.sending)'
# To the object, nearer; where it is
LOOK_CLOSER = """
let [x0, y0, x1, y1] = [1e9, 1e9, 0, 0];
S.mask.forEach((v, i) => {
  if (v !== OBJECT) return;
  const x = i%S.w, y = Math.floor(i/S.w);
  [x0, y0, x1, y1] = [Math.min(x0, x), Math.min(y0, y), Math.max(x1, x), Math.max(y1, y)];
});
zoomTo(S.scale*1.9);
moveTo(view.clientWidth/2-S.scale*(x0+x1)/2, view.clientHeight/2-S.scale*(y0+y1)/2);
S.moved = true;
return [(x0+x1)/2, (y0+y1)/2, x1];
"""
PLACE = 'const [x, y] = screenOf(...arguments); return [x-view.clientWidth/2, y-view.clientHeight/2]'


class Simulated:
    "A masker that knows the truth, and not quite."
    threshold, bands = .5, None
    def __init__(self, top):
        self.truth = {}
        for i in range(10):
            s = simulate_sidescan([7, i], 448, 640, wrecks=[(18+3*(i%4), (1 if i%2 else -1)*(16+i%3), 17)])
            Image.fromarray(s.image).save(top/f'objects/line_{i:02}.png')
            self.truth[f'line_{i:02}.png'] = s.wreck.astype(float)
    def __call__(self, path):
        wreck = self.truth[path.name]
        noise = ndimage.gaussian_filter(np.random.default_rng(3).normal(size=wreck.shape), 7)
        logit = 14*(ndimage.gaussian_filter(wreck, 4)-.35)+.9*noise/noise.std()
        logit[ndimage.gaussian_filter(wreck, 25) < .01] -= 2.5
        return (1/(1+np.exp(-logit))).astype(np.float32)


class Hand:
    "Draws, and waits until all is saved."
    def __init__(self, b):
        self.b = b
    def wait(self):
        while self.b.execute_script(AT_WORK):
            time.sleep(.05)
        time.sleep(.4)
    def keys(self, *keys):
        ActionChains(self.b, duration=10).send_keys(*keys).perform()
        self.wait()
    def go(self, actions, x, y):
        dx, dy = self.b.execute_script(PLACE, x, y)
        return actions.move_to_element_with_offset(self.b.find_element('id', 'view'), round(dx), round(dy))
    def stroke(self, start, end):
        actions = self.go(ActionChains(self.b, duration=10), *start).click_and_hold()
        self.go(actions, *end).release().perform()
        self.wait()


def shoot(b, address):
    "Some pictures that are done, one with a draft, and one that is being drawn on."
    b.execute_cdp_cmd('Emulation.setDeviceMetricsOverride', SCREEN)
    set_theme(b, 'light')
    b.get(address)
    hand = Hand(b)
    hand.wait()
    hand.keys('\ue007') # right
    hand.keys('n')
    hand.stroke((60, 240), (70, 236))
    hand.keys('s', 'l')
    x, y, far = b.execute_script(LOOK_CLOSER)
    hand.keys(']', ']')
    hand.stroke((far-6, y+22), (far+14, y+16))
    hand.keys('u')
    hand.stroke((x-30, y-34), (x-4, y-44))
    hand.keys('b')
    hand.go(ActionChains(b, duration=10), far+22, y+8).perform()
    for theme, look in (('light', ''), ('dark', 'm')):
        set_theme(b, theme)
        hand.keys(look)
        b.save_screenshot(str(IMAGES/f'review_{theme}.png'))


def main():
    "Serve the pictures from a folder that is removed afterwards."
    with tempfile.TemporaryDirectory() as name:
        (top := Path(name)).joinpath('objects').mkdir()
        masker = Simulated(top)
        server = Server(Review(top, pictures_of(top), masker))
        threading.Thread(target=server.serve_forever, daemon=True).start()
        b = browser()
        try:
            shoot(b, server.address)
        finally:
            b.quit()
            server.shutdown()
            server.end()


if __name__ == '__main__':
    main()
