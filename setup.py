"Package metadata, read from settings.ini; the version is that of the package."
import re
from configparser import ConfigParser
from pathlib import Path

from setuptools import find_packages, setup

root = Path(__file__).resolve().parent
config = ConfigParser(delimiters=['='])
config.read(root/'settings.ini', encoding='utf-8')
s = config['DEFAULT']
name, readme = s['lib_name'], root/'README.md'
init = (root/name/'__init__.py').read_text(encoding='utf-8')

setup(
    name=name,
    version=re.search(r'^__version__ = "(.+)"$', init, re.M)[1],
    description=s['description'],
    long_description=readme.read_text(encoding='utf-8') if readme.exists() else s['description'],
    long_description_content_type='text/markdown',
    author=s['author'],
    author_email=s['author_email'],
    license={'apache2': 'Apache-2.0'}[s['license']],
    keywords=s['keywords'],
    classifiers=['Development Status :: 3 - Alpha', 'Intended Audience :: Science/Research',
                 'Programming Language :: Python :: 3', 'Topic :: Scientific/Engineering :: Image Recognition'],
    packages=find_packages(include=[name, f'{name}.*']),
    include_package_data=True,
    python_requires='>=' + s['min_python'],
    install_requires=s['requirements'].split(),
    extras_require={key.removesuffix('_requirements'): s[key].split() for key in s if key.endswith('_requirements')},
    entry_points={'console_scripts': s['console_scripts'].split()+s['nbdev_scripts'].split(),
                  'nbdev': [f'{name}={name}._modidx:d']},
    zip_safe=False,
)
