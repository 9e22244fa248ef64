"""The API key: from the environment only, and hidden wherever text leaves the program."""

import os

from huatuo_jax.errors import ConfigError

VARIABLE = "OPENAI_API_KEY"
_HIDDEN = "[API key]"


class ApiKey:
    """A key that no `repr`, message or traceback shows."""

    def __init__(self, text: str) -> None:
        """Takes the key.

        Raises:
          ConfigError: it cannot be sent in an HTTP header; the message does not show it.
        """
        self.__text = text.strip()
        if not all("!" <= character <= "~" for character in self.__text):
            # An HTTP library would name the whole value in its error.
            raise ConfigError(f"{VARIABLE} holds a blank or a character that no API key has; set it anew")

    def __repr__(self) -> str:
        return "ApiKey(…)"

    def reveal(self) -> str:
        """The key, for the client's constructor; a placeholder where none is set (local servers ask for none)."""
        return self.__text or "none"

    def hide(self, text: str) -> str:
        """The text with the key replaced: endpoints quote it in their errors."""
        return text.replace(self.__text, _HIDDEN) if self.__text else text


def key_from_environment(base_url: str, default_url: str) -> ApiKey:
    """The key in OPENAI_API_KEY; it may be unset for any endpoint but OpenAI's own.

    Raises:
      ConfigError: it is needed and not set, or malformed.
    """
    text = os.environ.get(VARIABLE, "")
    if not text.strip() and base_url == default_url:
        raise ConfigError(f"{VARIABLE} is not set; export it, or give the --base-url of a server that needs none")
    return ApiKey(text)
