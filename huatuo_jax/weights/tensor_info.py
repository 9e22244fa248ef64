"""What is known of a tensor before it is read."""

from typing import NamedTuple

import numpy as np


class TensorInfo(NamedTuple):
    """Shape and dtype of one tensor of a folder; `dtype` is None where it is not one of float32, float16 and bfloat16."""

    shape: tuple[int, ...]
    dtype: np.dtype | None
    dtype_name: str
