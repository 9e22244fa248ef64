"""The API key: from the environment only, and hidden wherever text leaves the program.

Read once by `huatuo-data unify`, which hands it to `huatuo_jax/chat_client/client.py`. What must hold: no argument, file, message
or traceback ever holds the key, so it travels as an `ApiKey` and never as text. Next to read: that client.
"""

import os

from huatuo_jax.errors import ConfigError

VARIABLE = "OPENAI_API_KEY"
SHORTEST_IN_ANSWERS = 12
"""Characters of a key that is looked for in answers: shorter ones ("none", "EMPTY") are words that a text may hold by itself."""
_HIDDEN = "[API key]"


class ApiKey:
    """A key that no `repr`, message or traceback shows."""

    def __init__(self, text: str, variable: str = VARIABLE) -> None:
        """Takes the key that stood in the environment's `variable`.

        Raises:
          ConfigError: it cannot be sent in an HTTP header; the message does not show it.
        """
        # Stripped: secrets that are mounted as files or pasted often end in a line break.
        self.__text = text.strip()
        if not all("!" <= character <= "~" for character in self.__text):
            # An HTTP library would name the whole value in its error.
            raise ConfigError(f"{variable} holds a blank or a character that no API key has; set it anew")

    def __repr__(self) -> str:
        return "ApiKey(…)"

    @property
    def is_set(self) -> bool:
        """Whether there is a key."""
        return bool(self.__text)

    def reveal(self) -> str:
        """The key, for the client's constructor; a placeholder where none is set (local servers ask for none)."""
        # The openai client refuses to start without a key, even for a server that asks for none.
        return self.__text or "none"

    def hide(self, text: str) -> str:
        """The text with the key replaced: endpoints quote it in their errors."""
        return text.replace(self.__text, _HIDDEN) if self.__text else text

    def hide_in_answer(self, text: str) -> str:
        """The model's own text, changed only if it holds a key that is too long to be there by chance."""
        return self.hide(text) if len(self.__text) >= SHORTEST_IN_ANSWERS else text


def key_from_environment(base_url: str, default_url: str) -> ApiKey:
    """The key in OPENAI_API_KEY; it may be unset for any endpoint but OpenAI's own.

    Raises:
      ConfigError: it is needed and not set, or malformed.
    """
    text = os.environ.get(VARIABLE, "")
    if not text.strip() and base_url == default_url:
        raise ConfigError(f"{VARIABLE} is not set; export it, or give the --base-url of a server that needs none")
    return ApiKey(text)
