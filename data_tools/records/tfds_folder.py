"""The two JSON files that make a folder of ArrayRecord shards a TensorFlow Datasets dataset.

After them `tfds.builder_from_directory(folder).as_data_source(split=…)` opens the folder. They are written here rather than by
TFDS, because its writer runs in one process, cannot be resumed and puts a Python integer per token through protobuf.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from huatuo_jax.io.files import write_json

VERSION = "1.0.0"
_FEATURES = "tensorflow_datasets.core.features"
TEXT: dict[str, Any] = {"pythonClassName": f"{_FEATURES}.text_feature.Text", "text": {}}
TEXTS: dict[str, Any] = {
    "pythonClassName": f"{_FEATURES}.sequence_feature.Sequence",
    "sequence": {"feature": TEXT, "length": "-1"},
}
INT32_VECTOR: dict[str, Any] = {
    "pythonClassName": f"{_FEATURES}.tensor_feature.Tensor",
    "tensor": {"dtype": "int32", "encoding": "none", "shape": {"dimensions": ["-1"]}},
}


def write_tfds_metadata(
    folder: Path,
    dataset: str,
    description: str,
    features: Mapping[str, dict[str, Any]],
    splits: Mapping[str, Sequence[int]],
    num_bytes: Mapping[str, int],
) -> None:
    """Writes `features.json` and `dataset_info.json`.

    Args:
      dataset: the name in front of the shard files (see `shards.shard_name`).
      features: feature name → one of TEXT, TEXTS, INT32_VECTOR.
      splits: split name → records in each shard.
      num_bytes: split name → bytes on disk.
    """
    write_json(
        folder / "features.json",
        {"pythonClassName": f"{_FEATURES}.features_dict.FeaturesDict", "featuresDict": {"features": dict(features)}},
    )
    write_json(
        folder / "dataset_info.json",
        {
            "description": description,
            "disableShuffling": True,
            "fileFormat": "array_record",
            "name": dataset,
            "splits": [
                {
                    "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
                    "name": split,
                    "numBytes": str(num_bytes[split]),
                    "shardLengths": [str(count) for count in counts],
                }
                for split, counts in splits.items()
            ],
            "version": VERSION,
        },
    )
