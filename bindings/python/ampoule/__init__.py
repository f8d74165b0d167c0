"""Entities, labels and vectors from clinical text, on this machine and offline.

A bundle is one file that holds a model. ``Extractor`` finds entities in a note of any length, ``Classifier`` gives texts labels,
``Embedder`` turns them into vectors::

    with ampoule.Extractor.open("clinical-en.int8.safetensors") as extractor:
        for entity in extractor.extract(text):
            print(entity.label, text[entity.start:entity.end])

Calls may be made from several threads, and free the interpreter while they compute. No error holds any of a text.
"""

from __future__ import annotations

import copy
import ctypes
import os
import re
import struct
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain
from typing import TYPE_CHECKING, Any, Literal, NamedTuple, TypedDict, TypeVar

try:
    from ._native import ampoule_native as _native

    # uniffi writes this comparison of each function with the library's, and leaves it out.
    _native._uniffi_check_api_checksums(_native._UniffiLib)
except Exception as error:
    # An unsound installation: an old file beside a new one, or a library for another machine.
    raise ImportError(
        f"ampoule's library cannot be loaded with this version of its Python files ({error}); install the package again"
    ) from None

if TYPE_CHECKING:
    from typing_extensions import Self, Unpack

__all__ = [
    "AmpouleError",
    "CancelToken",
    "Cancelled",
    "Classifier",
    "Closed",
    "Computed",
    "Embedder",
    "Entity",
    "Extractor",
    "FetchBundle",
    "FixInput",
    "GpuReport",
    "Internal",
    "LabelScore",
    "ModelCheck",
    "ModelReport",
    "OpenOptions",
    "UpdateApp",
    "UseCpu",
    "live_objects",
    "self_check",
    "version",
]

T = TypeVar("T")


class AmpouleError(Exception):
    """What went wrong, by what can be done about it: see the classes of this one. The message holds none of a text."""


class FetchBundle(AmpouleError):
    """The bundle is not there, cannot be read, or is damaged: fetch it again."""


class UpdateApp(AmpouleError):
    """The bundle is sound, but not for this version of the library or for this task: update ampoule, or open another bundle."""


class UseCpu(AmpouleError):
    """The device or kernel that was asked for is not to be had here: open the model on the processor."""


class FixInput(AmpouleError):
    """An option or a text cannot be used as it is: mend it."""


class Cancelled(AmpouleError):
    """The call was cancelled, or its time was over. The model stays usable."""


class Closed(AmpouleError):
    """The model was closed before the call: open it again."""


class Internal(AmpouleError):
    """A defect of this library."""


_ERRORS = {getattr(_native.AmpouleError, kind.__name__): kind for kind in AmpouleError.__subclasses__()}


def _reserve(buffer: Any, additional: int) -> Any:
    """Grows a buffer of uniffi's, which stays behind empty: what a signal's handler raises before the grown one has taken its place, where
    uniffi frees the buffer that it knows, would else have it freed twice."""
    old = type(buffer).from_buffer_copy(buffer)
    ctypes.memset(ctypes.addressof(buffer), 0, ctypes.sizeof(buffer))
    return _native._uniffi_rust_call(_native._UniffiLib.ffi_ampoule_bindings_rustbuffer_reserve, old, additional)


_native._UniffiRustBuffer.reserve = staticmethod(_reserve)


def _call(function: Callable[..., T], *args: Any) -> T:
    try:
        return function(*args)
    except _native.AmpouleError as error:
        kind, message = _ERRORS[type(error)], str(error)
    except _native.InternalError:
        # Its message is whatever went wrong at the border.
        kind, message = Internal, f"a defect of ampoule {version()} ended the call; please report what was done"
    # Outside of the handlers, so that nothing stands behind it.
    raise kind(message)


class CancelToken:
    """Ends the calls that it was given to, from any thread."""

    __slots__ = ("_token",)

    def __init__(self) -> None:
        self._token = _native.CancelToken()

    def cancel(self) -> None:
        """Ends the calls that have this token, and those to come, with ``Cancelled``."""
        self._token.cancel()

    @property
    def cancelled(self) -> bool:
        """Whether it has been cancelled."""
        return bool(self._token.is_cancelled())


class Entity(NamedTuple):
    """A piece of a text with a label; it holds no text itself. Its ends are those of whole grapheme clusters."""

    label: str
    """The label's name."""
    start: int
    """Where it begins in the ``str``: ``text[entity.start:entity.end]``."""
    end: int
    """Where it ends."""
    score: float
    """How probable it is, to the model, that the entity has this label and exactly these words, in 0..=1."""
    utf8: range
    """The same place in bytes of UTF-8."""
    utf16: range
    """The same place in UTF-16 code units, as JavaScript, Java and Swift's ``NSString`` count."""


class LabelScore(NamedTuple):
    """One label of a text."""

    label: str
    """The label's name."""
    score: float
    """Its probability, in 0..=1."""


class ModelReport(NamedTuple):
    """What an open model holds, and has done."""

    device: str
    """What computes: the processor's kernel, or a GPU."""
    kernel: str | None
    """The processor's kernel, as ``open(kernel=...)`` takes it."""
    reason: str
    """Why this device."""
    threads: int
    """Threads that compute."""
    precision: str
    """The narrowest type of a matrix in the bundle: f32, f16 or int8."""
    weight_bytes: int
    """Bytes of the bundle's tensors."""
    workspace_bytes: int
    """Bytes that are kept for the next call, and freed by ``trim``."""
    computed_tokens: int
    """Tokens computed so far. It stands still while nothing is computed."""
    running_calls: int
    """Calls that compute now."""
    gpu: GpuReport | None
    """How its GPU stands, where it has one."""


class Computed(NamedTuple):
    """Tokens that calls computed, special ones counted, by the device that did; windows of one text may be computed by both."""

    cpu_tokens: int
    """On the processor."""
    gpu_tokens: int
    """On the GPU."""


class ModelCheck(NamedTuple):
    """How near a model came to the golden cases of its bundle."""

    cases: int
    """The cases, each computed three times."""
    largest_difference: float
    """The largest difference of a value, as a share of its answer's largest magnitude where that is over 1."""
    allowed: float
    """The largest that is right."""


class GpuReport(NamedTuple):
    """What a model's GPU is, and has done."""

    adapter: str
    """The adapter, as its driver names it."""
    precision: str
    """What it computes in: ``f32`` or ``f16``."""
    state: str
    """``warming``, while the processor answers where it may; ``ready``; or ``failed``."""
    reason: str | None
    """Why it failed, or what was not proved."""
    warm_up_done: int
    """Batches of its warm-up that it has computed; the first compiles its kernels, and takes the longest."""
    warm_up_of: int
    """All of them."""
    check: ModelCheck | None
    """How near it came to the bundle's golden cases; ``None`` before, and where the bundle has none."""
    from_tokens: int | None
    """Where the processor is there too, the tokens of a batch's longest window from which on the GPU computes; ``None`` while that is not known,
    and where it takes longer at every length. The option ``gpu_from_tokens`` pins a number."""
    computed_tokens: int
    """Tokens of the batches that it answered."""
    unverified_batches: int
    """The batches that it answered since it last proved itself: where it failed, what nothing vouches for."""


def _check(check: Any) -> ModelCheck | None:
    return check and ModelCheck(*(getattr(check, field) for field in ModelCheck._fields))


def _gpu(report: Any) -> GpuReport | None:
    if report is None:
        return None
    known = {field: getattr(report, field) for field in GpuReport._fields}
    return GpuReport(**known | {"state": report.state.name.lower(), "check": _check(report.check)})


class OpenOptions(TypedDict, total=False):
    """How a model is opened; each has a default."""

    device: Literal["cpu", "gpu", "gpu_or_cpu"]
    """Where to compute; ``cpu``. ``gpu_or_cpu`` is the processor until a GPU has proved itself, where that takes longer, and once it fails; see
    ``warm_up``."""
    adapter: str | None
    """The GPU: a part of its adapter's name. Without one the first that is hardware; software in a GPU's place has to be named."""
    gpu_from_tokens: int | None
    """With ``gpu_or_cpu``, the tokens of a batch's longest window from which on the GPU computes; ``None`` has that measured while it warms up."""
    threads: int
    """Threads that compute; 0 for as many as the machine has fast cores, at most four."""
    kernel: str | None
    """The kernel of the processor, as a report names it."""
    autotune: bool
    """Whether kernels are measured when the model is opened, and the fastest is used."""
    load: Literal["map", "copy"] | None
    """How the file is read; ``copy``. Nothing may rewrite a mapped file while the model is open."""
    verify: bool
    """Whether the data is compared with the digest in its header."""
    min_score: float
    """Entities with a lower score are left out."""
    min_score_by_label: Mapping[str, float]
    """The same by label, in place of ``min_score``."""
    temperature: float | None
    """What logits are divided by before they become probabilities, in place of the model's own temperature."""
    max_window_tokens: int
    """The most tokens of a window; 0 for as many as the model takes."""
    max_batch_tokens: int
    """The most tokens that are computed at once, which bounds memory; 0 for 1024."""


_DEVICES = {"cpu": "CPU", "gpu": "GPU", "gpu_or_cpu": "GPU_OR_CPU"}
_LOADS = {"map": "MAP", "copy": "COPY"}


def _options(options: OpenOptions) -> Any:
    unknown = options.keys() - OpenOptions.__annotations__.keys()
    if unknown:
        known = ", ".join(OpenOptions.__annotations__)
        raise TypeError(f"open() has no option {min(unknown)!r}; its options are {known}")
    given: dict[str, Any] = dict(options)
    for name, choices, enum in [("device", _DEVICES, _native.DeviceChoice), ("load", _LOADS, _native.LoadMode)]:
        choice = given.get(name)
        if choice is not None:
            if choice not in choices:
                raise FixInput(f"{name}: expected {' or '.join(choices)}, found {choice!r}")
            given[name] = getattr(enum, choices[choice])
    given["min_score_by_label"] = dict(given.get("min_score_by_label") or {})
    return _native.OpenOptions(**given)


_SURROGATE = re.compile("[\ud800-\udfff]")


def _mended(text: str) -> str:
    """The text with U+FFFD for each surrogate, none of which UTF-8 can say; characters stay where they are."""
    if not isinstance(text, str):
        raise TypeError(f"expected a str, found {type(text).__name__}")
    return text if text.isascii() else _SURROGATE.sub("\ufffd", text)


def _milliseconds(timeout: float | None) -> int | None:
    if timeout is None:
        return None
    if timeout != timeout:
        raise FixInput("timeout: expected seconds, found NaN")
    return int(max(0.0, min(timeout * 1000, 2.0**63)))


def _extract_packed(model: Any, text: str) -> bytes:
    """``model.extract_packed(text)`` by less Python than uniffi's: a core's cache has lost all of it while the model computed."""
    data = text.encode()
    foreign = _native._UniffiForeignBytes(len(data), ctypes.cast(data, ctypes.POINTER(ctypes.c_char)))
    lib, call = _native._UniffiLib, _native._uniffi_rust_call_with_error
    buffer = call(None, lib.ffi_ampoule_bindings_rustbuffer_from_bytes, foreign)
    method = lib.uniffi_ampoule_bindings_fn_method_extractor_extract_packed
    rows = call(_native._UniffiFfiConverterTypeAmpouleError, method, model._uniffi_clone_handle(), buffer)
    try:
        # After their number.
        return ctypes.string_at(rows.data, rows.len)[4:]
    finally:
        rows.free()


# An entity as `_native.Extractor.extract_packed` gives it.
_ROW = struct.Struct("<If6I")
# Characters from which on a call is worth a thread, so that Ctrl-C need not wait for it.
_LONG = 8_000
# Texts, and characters of them, that go into one call of a batch.
_BATCH = 64


def _run(method: Callable[..., T], data: Any, length: int, cancel: CancelToken | None, timeout: float | None) -> T:
    """One call. Python handles signals in the main thread, between instructions, so a long call there is made by another thread."""
    token = None if cancel is None else cancel._token
    if length < _LONG or threading.current_thread() is not threading.main_thread():
        return _call(method, data, token, _milliseconds(timeout))
    token = _native.CancelToken() if token is None else token.child()
    return _aside(token, method, data, token, _milliseconds(timeout))


def _aside(token: Any, function: Callable[..., T], *args: Any) -> T:
    """The function's result by another thread; what a signal's handler raises here cancels the token first."""
    done = threading.Event()
    results: list[T] = []
    errors: list[BaseException] = []

    def work() -> None:
        try:
            results.append(_call(function, *args))
        except BaseException as error:
            errors.append(error)
        finally:
            done.set()

    thread = threading.Thread(target=work, name="ampoule-call", daemon=True)
    try:
        # Waits for the thread, and so may be interrupted too.
        thread.start()
        done.wait()
    except BaseException:
        token.cancel()
        if thread.ident is not None:
            done.wait()
        raise
    if errors:
        # Without the frames of the other thread.
        raise errors[0].with_traceback(None)
    return results[0]


def _batches(texts: Iterable[str]) -> Iterator[list[str]]:
    if isinstance(texts, str):
        raise TypeError("expected an iterable of str, found a str")
    return _cut(texts)


def _cut(texts: Iterable[str]) -> Iterator[list[str]]:
    batch: list[str] = []
    length = 0
    for text in texts:
        batch.append(_mended(text))
        length += len(text)
        if len(batch) == _BATCH or length >= _LONG:
            yield batch
            batch, length = [], 0
    if batch:
        yield batch


class _Model:
    """What the three kinds of model have in common."""

    _KIND: Any

    def __init__(self) -> None:
        raise TypeError(f"use {type(self).__name__}.open(path)")

    @classmethod
    def _opened(cls, source: Any, options: OpenOptions) -> Self:
        model = cls.__new__(cls)
        model._model = _call(cls._KIND.open, source, _options(options))
        model._process = os.getpid()
        return model

    _model: Any
    _process: int

    @classmethod
    def open(cls, path: str | os.PathLike[str], **options: Unpack[OpenOptions]) -> Self:
        """Opens a bundle.

        Raises ``FetchBundle``, ``UpdateApp``, ``UseCpu`` or, for what an option cannot be, ``FixInput``.
        """
        return cls._opened(_native.BundleSource.PATH(os.fspath(path)), options)

    @classmethod
    def open_at(
        cls, path: str | os.PathLike[str], offset: int, length: int, **options: Unpack[OpenOptions]
    ) -> Self:
        """Opens a bundle of ``length`` bytes that begins at byte ``offset`` of a file, such as a stored entry of a zip."""
        return cls._opened(_native.BundleSource.WITHIN(os.fspath(path), offset, length), options)

    @classmethod
    def from_bytes(cls, bundle: bytes, **options: Unpack[OpenOptions]) -> Self:
        """Opens a bundle in memory, which is copied."""
        return cls._opened(_native.BundleSource.BYTES(bundle), options)

    def close(self) -> None:
        """Closes the model: later calls raise ``Closed``, running ones go on, and its memory is freed after the last."""
        self._model.release()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def counted(self) -> Self:
        """The same model as an object whose calls are counted by themselves, so that ``computed`` tells of one result, or of some.

        To close it closes it alone; with the model all such are closed.
        """
        model = copy.copy(self)
        model._model = self._here().counted()
        return model

    @property
    def computed(self) -> Computed:
        """Tokens that the calls of this object came to, by device. A call counts once it has ended, however it did."""
        computed = self._model.computed()
        return Computed(computed.cpu_tokens, computed.gpu_tokens)

    def report(self) -> ModelReport:
        """Where it computes, and what it holds."""
        report = _call(self._here().report)
        known = {field: getattr(report, field) for field in ModelReport._fields}
        return ModelReport(**known | {"gpu": _gpu(report.gpu)})

    def warm_up(
        self, on_progress: Callable[[GpuReport], object] | None = None, *, cancel: CancelToken | None = None
    ) -> GpuReport | None:
        """Waits until the model's GPU is ready or has failed, and says how it stands; ``None`` where it has none.

        ``on_progress`` hears how it stands now, and of all that follows, in this thread.
        """
        wait, token = self._here().wait_for_gpu, _native.CancelToken() if cancel is None else cancel._token.child()
        report = self.report().gpu
        while report is not None:
            if on_progress is not None:
                on_progress(report)
            if report.state != "warming":
                break
            if threading.current_thread() is threading.main_thread():
                report = _gpu(_aside(token, wait, report.warm_up_done, token, None))
            else:
                report = _gpu(_call(wait, report.warm_up_done, token, None))
        return report

    def self_check(self) -> ModelCheck | None:
        """Computes the golden cases of the model's bundle and compares the answers, as long as a dozen short texts take.

        ``None`` where the bundle has no cases. Raises ``UseCpu`` where an answer is wrong; the message says what to try.
        """
        return _check(_call(self._here().self_check))

    def trim(self) -> None:
        """Frees the memory that is kept for the next call."""
        _call(self._here().trim)

    def _here(self) -> Any:
        # A forked process has none of the model's threads, and may have been forked while one of them held a lock.
        if os.getpid() != self._process:
            raise Closed("the model was opened by another process, before a fork; open it in this one")
        return self._model


class Extractor(_Model):
    """Finds entities in notes of any length."""

    _KIND = _native.Extractor
    _labels: list[str]

    @classmethod
    def _opened(cls, source: Any, options: OpenOptions) -> Self:
        model = super()._opened(source, options)
        model._labels = _call(model._model.labels)
        return model

    @property
    def labels(self) -> list[str]:
        """The labels that entities can have."""
        return list(_call(self._here().labels))

    def _entities(self, rows: bytes) -> list[Entity]:
        labels = self._labels
        return [
            Entity(labels[label], start, end, score, range(utf8, utf8_end), range(utf16, utf16_end))
            for label, score, utf8, utf8_end, utf16, utf16_end, start, end in _ROW.iter_unpack(rows)
        ]

    def extract(self, text: str, *, cancel: CancelToken | None = None, timeout: float | None = None) -> list[Entity]:
        """The entities of a text, in order. ``timeout`` in seconds."""
        model, text = self._here(), _mended(text)
        if cancel is None and timeout is None and len(text) < _LONG:
            return self._entities(_call(_extract_packed, model, text))
        return self._entities(_run(model.extract_packed_within, text, len(text), cancel, timeout))

    def extract_batch(self, texts: Iterable[str], *, cancel: CancelToken | None = None) -> Iterator[list[Entity]]:
        """The entities of each text, computed some texts at a time; ``texts`` may be endless."""
        method = self._here().extract_batch_packed
        found = (_run(method, batch, sum(map(len, batch)), cancel, None) for batch in _batches(texts))
        return map(self._entities, chain.from_iterable(found))

    def stream(
        self, text: str, *, cancel: CancelToken | None = None, timeout: float | None = None
    ) -> Iterator[Entity]:
        """The entities of a long text, each as soon as nothing that follows can change it. Closing the iterator stops the work."""
        token = _native.CancelToken() if cancel is None else cancel._token.child()
        try:
            return _arriving(_call(self._here().stream, _mended(text), token, _milliseconds(timeout)), token, len(text))
        except BaseException:
            # What a signal's handler raised may have come after the stream had begun.
            token.cancel()
            raise


def _arriving(stream: Any, token: Any, length: int) -> Iterator[Entity]:
    try:
        while True:
            if length < _LONG or threading.current_thread() is not threading.main_thread():
                some = _call(stream.next)
            else:
                some = _aside(token, stream.next)
            if some is None:
                return
            for e in some:
                utf8, utf16 = range(e.utf8_start, e.utf8_end), range(e.utf16_start, e.utf16_end)
                yield Entity(e.label, e.scalar_start, e.scalar_end, e.score, utf8, utf16)
    finally:
        token.cancel()


class Classifier(_Model):
    """Sorts texts by labels."""

    _KIND = _native.Classifier

    @property
    def labels(self) -> list[str]:
        """The labels, in the model's order."""
        return list(_call(self._here().labels))

    def classify(
        self, text: str, *, cancel: CancelToken | None = None, timeout: float | None = None
    ) -> list[LabelScore]:
        """Every label's probability, the likeliest first. ``timeout`` in seconds."""
        return _scores(_run(self._here().classify, _mended(text), len(text), cancel, timeout))

    def classify_batch(
        self, texts: Iterable[str], *, cancel: CancelToken | None = None
    ) -> Iterator[list[LabelScore]]:
        """The same for each text, computed some texts at a time."""
        method = self._here().classify_batch
        found = (_run(method, batch, sum(map(len, batch)), cancel, None) for batch in _batches(texts))
        return map(_scores, chain.from_iterable(found))


def _scores(scores: list[Any]) -> list[LabelScore]:
    return [LabelScore(of.label, of.score) for of in scores]


class Embedder(_Model):
    """Turns texts into vectors for search and comparison."""

    _KIND = _native.Embedder

    @property
    def width(self) -> int:
        """Number of values of a vector."""
        return int(_call(self._here().width))

    def embed(self, text: str, *, cancel: CancelToken | None = None, timeout: float | None = None) -> bytes:
        """The vector of a text: ``width`` floats of four bytes, little-endian; ``numpy.frombuffer(vector, dtype="<f4")``."""
        vector: bytes = _run(self._here().embed, _mended(text), len(text), cancel, timeout)
        return vector

    def embed_batch(self, texts: Iterable[str], *, cancel: CancelToken | None = None) -> Iterator[bytes]:
        """The vector of each text, computed some texts at a time."""
        method, size = self._here().embed_batch, 4 * self.width
        found = (_run(method, batch, sum(map(len, batch)), cancel, None) for batch in _batches(texts))
        return (vectors[at : at + size] for vectors in found for at in range(0, len(vectors), size))


def version() -> str:
    """The version of the library."""
    return str(_native.version())


def self_check() -> list[str]:
    """Compares each kernel of this processor with the plain one, in a few milliseconds, and gives their names.

    Raises ``UseCpu`` where one computes wrongly; its message names the kernel to open models with.
    """
    return list(_call(_native.self_check))


def live_objects() -> int:
    """Models and streams that are open, of the whole process. A closed model counts until its last call ends."""
    return int(_native.live_objects())
