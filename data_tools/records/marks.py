"""Marks in files of records that change what may be learned: weights, preferences, pictures and sounds, tools.

`layouts.py` asks here while it reads a record. What must hold: a mark is obeyed, or the record is refused with the key that holds
it; none is passed over. The tables say which keys are meant.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from typing import Any

from huatuo_jax.errors import RecordError

WEIGHTS = ("weight", "train", "training", "train_on_turn", "trainable", "loss")
"""Keys of a message that say whether it is learned: OpenAI, axolotl, ms-swift."""
RECORD_WEIGHTS = ("weight", "train", "train_on_turn", "sample_weight", "loss_weight")
"""Keys of a whole record that say how much it counts."""

PREFERENCE = {
    *("chosen", "rejected", "kto_tag", "rating", "ratings", "preference", "winner", "better_response_id"),
    *("chosen_response", "rejected_response", "response_chosen", "response_rejected", "rejected_messages"),
}
"""Keys of data for preference training: an answer is marked as good or bad, or stands beside a better one."""
MULTIMODAL = {
    *("image", "images", "image_url", "image_urls", "image_path", "img", "video", "videos", "audio", "audios", "audio_url"),
    *("pixel_values", "input_audio", "attachments"),
}
TOOLS = {"tools", "functions", "tool_calls", "function_call"}
UNSUPPORTED_MASKS = {"train_detail", "training_detail", "loss_mask", "completion_mask", "assistant_masks"}

_OF_ANSWERS = {
    **dict.fromkeys(PREFERENCE, "preference data: the key {} says how good an answer is, and not every answer is to be learned"),
    **dict.fromkeys(TOOLS, "tools: no dialogue format renders what the key {} holds"),
    **dict.fromkeys(
        UNSUPPORTED_MASKS, "the key {} masks parts of an answer, which is learned as a whole or not at all (`weights`)"
    ),
}
_OF_ALL = dict.fromkeys(MULTIMODAL, "multimodal: the key {} holds something that is not text")
_EMPTY: tuple[Any, ...] = (None, "", "[]", "{}", [], {})


def is_empty(value: Any) -> bool:
    """Whether a key with this value says nothing: null, or empty text, list or object."""
    return not isinstance(value, int | float) and value in _EMPTY


def refuse(fields: Mapping[str, Any], ignored: Collection[str], where: str = "", is_dialogue: bool = True) -> None:
    """Raises RecordError if an object has a key that makes it something else than text to learn from.

    Args:
      ignored: keys that are no reason. where: before the reason.
      is_dialogue: False for a passage, beside which a rating or a label is mere metadata.
    """
    for key, held in fields.items():
        name = key.lower()
        reason = _OF_ALL.get(name) or (_OF_ANSWERS.get(name) if is_dialogue else None)
        if name == "label" and is_dialogue and _is_verdict(held):
            reason = _OF_ANSWERS["kto_tag"]
        if reason and key not in ignored and not is_empty(held):
            raise RecordError(f"{where}{reason.format(f'`{key}`')} (--ignore {key} reads the record all the same)")


def _is_verdict(label: Any) -> bool:
    # KTO has true and false, and lists of right and wrong answers have 0 and 1; other labels are names of topics.
    return isinstance(label, int | float) or str(label).lower() in ("true", "false", "0", "1", "desirable", "undesirable")


_PLACEHOLDER = re.compile(r"<\|?(?:image|img|imagehere|video|audio)(?:_pad|[ _-]?\d+)?\|?>", re.IGNORECASE)


def refuse_placeholders(turns: Sequence[Any], ignored: Collection[str]) -> None:
    """Raises RecordError if a turn has a placeholder, such as <image>, for something that is not text."""
    for number, turn in enumerate(turns):
        found = _PLACEHOLDER.search(turn) if isinstance(turn, str) and "<" in turn else None
        # HTML has elements of these names too, which are closed; not <img>, which Qwen-VL closes behind the file's name.
        if found and found[0] not in ignored and (found[0] == "<img>" or f"</{found[0][1:]}" not in turn):
            remedy = f"--ignore {found[0]!r} reads it as text"
            raise RecordError(
                f"multimodal: turn {number} holds {found[0]!r} in the place of something that is not text ({remedy})"
            )


def message_weight(message: Mapping[str, Any], used: set[str], number: int) -> int:
    """0 if any mark of a message says that it is not learned, else 1; adds the marks that it has to `used`."""
    weight = 1
    for name in WEIGHTS:
        held = message.get(name)
        if held is None:
            continue
        if not isinstance(held, int | float) or held not in (0, 1):
            raise RecordError(f"message {number}: `{name}` is {held!r}; a message is learned (1, true) or not (0, false)")
        used.add(name)
        weight = min(weight, int(held))
    return weight


def refuse_record_weight(fields: Mapping[str, Any], used: set[str], ignored: Collection[str]) -> None:
    """Raises RecordError if a whole record is weighted with anything but 1."""
    for name in RECORD_WEIGHTS:
        held = fields.get(name)
        if isinstance(held, int | float) and name not in ignored:
            if held != 1:
                raise RecordError(
                    f"`{name}` of the whole record is {held!r}; a record has only `weights`, 0 or 1 per answer "
                    f"(--ignore {name} reads the record all the same)"
                )
            used.add(name)
