"""Masks from images with and without an object: weakly supervised segmentation by background conditional divergence."""
__version__ = "0.1.0"

import lazy_loader

# The names that a user needs. Each is imported when it is first used: `import bcd_fast` loads no torch.
__getattr__, __dir__, __all__ = lazy_loader.attach(__name__, submod_attrs={
    'segmenter': ['Segmenter'],
    'core': ['InputError'],
    'data.datasets': ['DataConfig', 'load_dataset'],
    'data.images': ['BackgroundImages', 'Dataset', 'ObjectImages'],
    'backgrounds.stage1': ['Clustered'],
    'divergences.representations': ['make_divergence'],
    'masker.compositing': ['composite'],
    'masker.maskers': ['ModelConfig', 'make_masker'],
    'training.batches': ['Batches'],
    'training.losses': ['BCDLoss', 'SupervisedLoss'],
    'training.callbacks': ['BCDCallback'],
    'training.learner': ['bcd_learner', 'predict_masks'],
    'prediction.models': ['load_model', 'save_model'],
    'experiments.catalogue': ['compose_config'],
    'experiments.runs': ['run_experiment'],
})
