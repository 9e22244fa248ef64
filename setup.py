"""Packaging of huatuo-jax; tool settings live in pyproject.toml, exact versions in constraints.txt."""

from pathlib import Path

from setuptools import find_packages, setup

VERSION = Path("huatuo_jax/__init__.py").read_text().split('__version__ = "')[1].split('"')[0]

setup(
    name="huatuo-jax",
    version=VERSION,
    description="One-stage domain adaptation of language models in JAX: a reimplementation of HuatuoGPT-II",
    long_description=Path("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    python_requires=">=3.11,<3.14",
    # The recipes of `configs/` are installed inside the package, so that a user's own `configs` folder cannot collide with them.
    packages=[*find_packages(include=["huatuo_jax*", "data_tools*"]), "huatuo_jax.recipes"],
    package_dir={"huatuo_jax.recipes": "configs"},
    package_data={
        "data_tools.collect": ["phrases/*", "vocabularies/*"],
        "data_tools.unify": ["phrases.json", "prompts/*"],
    },
    install_requires=[
        "array-record>=0.8.1",
        "etils[epath]>=1.9",
        "flax>=0.12.8",
        "grain>=0.2.18",
        "jax>=0.10.2",
        "matplotlib>=3.9",
        "numpy>=2.0",
        "optax>=0.2.8",
        "orbax-checkpoint>=0.12.8",
        "protobuf>=5.26",
        "qwix>=0.1.8",
        "rich>=13.7",
        "safetensors>=0.4.3",
        "sentencepiece>=0.2.3",
        "tensorboardX>=2.6.2",
        "tensorflow-datasets>=4.9.9",
        "tokenizers>=0.20",
        "zstandard>=0.22",
    ],
    extras_require={
        "tpu": ["jax[tpu]>=0.10.2"],
        "cuda12": ["jax[cuda12]>=0.10.2"],
        "cuda13": ["jax[cuda13]>=0.10.2"],
        "torch": ["torch>=2.6", "transformers>=4.46"],
        "unify": ["aiohttp>=3.14.4", "openai>=3.57"],
        "collect": ["faiss-cpu>=1.9", "pyarrow>=15", "rensa>=0.5", "scikit-learn>=1.5"],
        "documents": ["pyarrow>=15", "pypdf>=5", "trafilatura>=2"],
        "ray": ["ray>=2.40"],
        "dev": [
            "aiohttp>=3.14.4",
            "datasketch>=1.6",
            "faiss-cpu>=1.9",
            "hypothesis>=6.100",
            "mypy>=1.11",
            "openai>=3.57",
            "pre-commit>=4.0",
            "pyarrow>=15",
            "pypdf>=5",
            "pytest>=8.0",
            "pytest-xdist>=3.6",
            "rensa>=0.5",
            "ruff>=0.9",
            "scikit-learn>=1.5",
            "torch==2.13.0",
            "trafilatura>=2",
            "transformers>=5.0",
        ],
    },
    entry_points={
        "console_scripts": [
            "huatuo=huatuo_jax.cli:main",
            "huatuo-data=data_tools.cli:main",
        ]
    },
    classifiers=[
        "Programming Language :: Python :: 3.11",
        "Programming Language :: Python :: 3.12",
        "Programming Language :: Python :: 3.13",
        "Topic :: Scientific/Engineering :: Artificial Intelligence",
    ],
)
