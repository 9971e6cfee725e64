"""The memory of a chat."""

Message = dict[str, str]


class Conversation:
    """Messages in OpenAI's form, which alternate between user and assistant after an optional system message."""

    def __init__(self, system: str | None = None) -> None:
        self._system: list[Message] = [{"role": "system", "content": system}] if system else []
        self.messages: list[Message] = list(self._system)

    def ask(self, question: str) -> None:
        """Add what the user says."""
        self.messages.append({"role": "user", "content": question})

    def answer(self, text: str) -> None:
        """Add the answer to the last question. An empty one takes the question back: turns must alternate."""
        if text:
            self.messages.append({"role": "assistant", "content": text})
        else:
            self.messages.pop()

    def reset(self) -> None:
        """Forget everything but the system message."""
        self.messages = list(self._system)
