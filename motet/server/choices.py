"""One choice while it comes: engine outputs → text that is certain, stop strings, and where it ended."""

from __future__ import annotations

from dataclasses import dataclass

from motet.engines.base import TokenOutput
from motet.server.detokenizer import Detokenizer
from motet.server.jobs import Display, Job
from motet.server.stops import StopStrings


@dataclass(frozen=True, slots=True)
class Piece:
    """What one step adds to a choice: text, the tokens it took and, at the end, why it ended.

    `prompt`: the tokens are the echoed or scored prompt's (all but its first). `stop_reason` is the stop string or
    stop token that ended it. `offset`: characters of the choice's tokens before these.
    """

    text: str
    tokens: tuple[TokenOutput, ...] = ()
    offset: int = 0
    prompt: bool = False
    finish: str | None = None
    stop_reason: str | int | None = None


class Choice:
    """Reads the outputs of one choice of a job in order."""

    def __init__(self, job: Job, show: Display) -> None:
        self._job = job
        self._show = show
        self._forced: list[TokenOutput] = []
        self._text = Detokenizer(job.tokenizer, job.prompt_ids, skip_special_tokens=show.skip_special_tokens)
        self._stops = StopStrings(show.stops, include=show.include_stop)
        self._offset = 0
        self.num_tokens = 0
        self.finished = False

    def opening(self) -> Piece | None:
        """What is known before the first output: the echo of a prompt that is not scored, or an empty answer."""
        nothing = self.finished = not self._job.computes
        text = self._echo() if not self._job.request.forced else ""
        return Piece(text, prompt=True, finish="length" if nothing else None) if text or nothing else None

    def _echo(self) -> str:
        if not self._show.echo:
            return ""
        return self._job.prompt_text or self._job.tokenizer.decode(self._job.prompt_ids)

    def read(self, output: TokenOutput) -> Piece | None:
        """The piece that this output completes, None while it is held back."""
        if output.forced:
            return self._read_forced(output)
        self.num_tokens += 1
        return self._cut(output, self._decode(output))

    def _read_forced(self, output: TokenOutput) -> Piece | None:
        self._forced.append(output)
        if len(self._forced) < len(self._job.request.forced):
            return None
        self.finished = output.finish is not None
        lengths = map(self._job.tokenizer.length_of, self._job.prompt_ids)
        self._offset = sum(lengths) if self._show.echo else 0
        return Piece(self._echo(), tuple(self._forced), prompt=True, finish=output.finish)

    def _decode(self, output: TokenOutput) -> str:
        """The text that became certain; a token that the engine stopped at is not part of the answer."""
        hidden = output.finish == "stop" and not self._show.include_stop
        text = "" if hidden else self._text.push(output.token)
        return text + self._text.flush() if output.finish else text

    def _cut(self, output: TokenOutput, text: str) -> Piece:
        stop: str | None = None
        if self.num_tokens > self._show.min_tokens or not self._show.stops:
            text, stop = self._stops.push(text)
        finish = "stop" if stop is not None else output.finish
        if finish is not None and stop is None:
            text += self._stops.flush()
        self.finished = finish is not None
        offset, self._offset = self._offset, self._offset + self._job.tokenizer.length_of(output.token)
        return Piece(text, (output,), offset, finish=finish, stop_reason=self._reason(output, stop))

    def _reason(self, output: TokenOutput, stop: str | None) -> str | int | None:
        if stop is not None:
            return stop
        explicit = output.token in self._job.request.sampling.stop_token_ids
        return output.token if output.finish == "stop" and explicit else None
