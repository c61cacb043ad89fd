"""Train a model of anomalib from scratch on pictures without the object, and write its map of other pictures.

    python -m venv VENV && VENV/bin/pip install anomalib                # never into the package's own environment
    VENV/bin/python scripts/anomalib_peers.py --method draem --train DIR/backgrounds --maps DIR/test_objects --out MAPS

Nothing pretrained is used and nothing is downloaded, which means:

- draem: no weights are missing, its two networks are always trained from scratch. Its pretended anomalies are filled
  with pictures of textures from the web (DTD); here with noise, as anomalib does without them, or --textures FOLDER.
- student_teacher: the teacher of STFPM is a ResNet-18 trained on ImageNet. Here it is one with random weights, which
  never change: the student learns to imitate random features of backgrounds. That is a much weaker teacher; the scores
  say nothing about STFPM with its own.

Both use anomalib's networks, losses and optimizers, in a loop that stops by the clock. MAPS/FOLDER/STEM.npy is (H,W) at
the picture's own resolution: probabilities (draem) or distances of features (student_teacher). MAPS/about.json is last.
"""
import argparse, json, resource, time
from importlib.metadata import version
from pathlib import Path
from unittest.mock import patch

import numpy as np, torch, torch.nn.functional as F
from PIL import Image

SUFFIXES = '.png', '.jpg', '.jpeg', '.tif', '.tiff', '.bmp' # of 8 bits
MEAN, STD = (torch.tensor(v).view(3, 1, 1) for v in ((.485, .456, .406), (.229, .224, .225))) # as in STFPM


def files(folder):
    return sorted(p for p in Path(folder).iterdir() if p.suffix.lower() in SUFFIXES)


def read(path):
    "(3,H,W) floats in [0,1]"
    return torch.from_numpy(np.array(Image.open(path).convert('RGB'))).permute(2, 0, 1).float()/255


def sized(x, size):
    "(N,C,H,W) in another size"
    return F.interpolate(x, size=size, mode='bilinear', antialias=True, align_corners=False)


class Draem:
    "Pretended anomalies on backgrounds; what the network takes out of them, and where it sees them."
    def __init__(self, textures=None):
        from anomalib.data.utils.generators.perlin import PerlinAnomalyGenerator
        from anomalib.models.image.draem.loss import DraemLoss
        from anomalib.models.image.draem.torch_model import DraemModel
        self.net, self.loss_of, self.batch = DraemModel(), DraemLoss(), 4
        self.augment = PerlinAnomalyGenerator(anomaly_source_path=textures, blend_factor=(.1, 1.))
        self.optimizer = torch.optim.Adam(self.net.parameters(), lr=1e-4)

    def loss(self, x):
        augmented, mask = self.augment(x)
        reconstruction, prediction = self.net(augmented)
        return self.loss_of(x, reconstruction, mask, prediction)

    def map(self, x):
        return self.net(x).anomaly_map


class StudentTeacher:
    "A student that imitates random features of backgrounds."
    def __init__(self, textures=None):
        from anomalib.models.image.stfpm import torch_model
        from anomalib.models.image.stfpm.loss import STFPMLoss
        extractor = torch_model.TimmFeatureExtractor
        def untrained(*args, **kwargs):
            return extractor(*args, **kwargs|dict(pre_trained=False))
        with patch.object(torch_model, 'TimmFeatureExtractor', untrained):
            self.net = torch_model.STFPMModel(layers=('layer1', 'layer2', 'layer3'))
        self.loss_of, self.batch = STFPMLoss(), 16
        self.optimizer = torch.optim.SGD(self.net.student_model.parameters(), lr=.4, momentum=.9, weight_decay=1e-3)

    def loss(self, x):
        return self.loss_of(*self.net((x-MEAN)/STD))

    def map(self, x):
        return self.net((x-MEAN)/STD).anomaly_map


METHODS = dict(draem=Draem, student_teacher=StudentTeacher)


def train(model, pile, seconds):
    "Steps until the time is over, one at least; how many."
    model.net.train()
    start, steps = time.perf_counter(), 0
    while not steps or time.perf_counter()-start < seconds:
        x = pile[torch.randint(len(pile), (model.batch,))]
        loss = model.loss(x.flip([d for d in (-2, -1) if torch.rand(()) < .5]))
        model.optimizer.zero_grad()
        loss.backward()
        model.optimizer.step()
        steps += 1
    model.net.eval()
    return steps


@torch.inference_mode()
def write_maps(model, folder, out, size):
    "A map for each picture of a folder."
    out.mkdir(parents=True, exist_ok=True)
    for path in files(folder):
        x = read(path)[None]
        found = model.map(sized(x, size)).reshape(1, 1, *size)
        np.save(out/f'{path.stem}.npy', sized(found, x.shape[-2:])[0, 0].float().numpy())


def shape_of(paths, size):
    "The shorter side of the median picture becomes `size`, where it is not smaller; sides are multiples of 32."
    h, w = np.median([Image.open(p).size[::-1] for p in paths], axis=0)
    scale = min(1, size/min(h, w))
    return tuple(32*max(2, round(side*scale/32)) for side in (h, w))


def arguments(words=None):
    p = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    p.add_argument('--method', required=True, choices=METHODS)
    p.add_argument('--train', required=True, metavar='FOLDER', help='pictures without the object')
    p.add_argument('--maps', required=True, nargs='+', metavar='FOLDER', help='pictures that want a map')
    p.add_argument('--out', required=True, metavar='FOLDER')
    p.add_argument('--seconds', type=float, default=120.)
    p.add_argument('--seed', type=int, default=0)
    p.add_argument('--size', type=int, default=256, help='shorter side that the networks see, at most')
    p.add_argument('--textures', metavar='FOLDER', help='pictures to fill pretended anomalies with (draem)')
    return p.parse_args(words)


def main(words=None):
    a = arguments(words)
    torch.manual_seed(a.seed)
    paths, out = files(a.train), Path(a.out)
    size = shape_of(paths, a.size)
    pile = torch.cat([sized(read(p)[None], size) for p in paths])
    model = METHODS[a.method](a.textures)
    start = time.perf_counter()
    steps = train(model, pile, a.seconds)
    trained = time.perf_counter()
    for folder in a.maps:
        write_maps(model, folder, out/Path(folder).name, size)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss/2**10
    about = dict(seconds=trained-start, seconds_test=time.perf_counter()-trained, steps=steps, peak_rss_mb=peak,
                 anomalib=version('anomalib'), size=size)
    (out/'about.json').write_text(json.dumps(about)+'\n')
    print(a.method, about)


if __name__ == '__main__':
    main()
