"""Archives: a zip of ``.npy`` members and ``manifest.json``, whose hash covers everything; never pickle.

Every file format of this package that holds arrays is an archive with its own `Layout`. Members are
little-endian, in C order, stored, deflated or LZMA; time stamps are fixed, so that equal content gives
equal bytes. Reading refuses whatever its layout does not name before it unpacks anything.
"""

from __future__ import annotations

import hashlib
import json
import lzma
import math
import os
import re
import stat
import struct
import tempfile
import tomllib
import zipfile
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from numpy.lib import format as npy

from wdmoe_opt.errors import InputError, InstanceFileError
from wdmoe_opt.validation import freeze

if TYPE_CHECKING:
    from numpy.typing import NDArray

MANIFEST = "manifest.json"
#: Largest declared size of all members together, in bytes: a guard against archives that explode.
SIZE_LIMIT = 4 * 2**30
MANIFEST_LIMIT = 16 * 2**20
TOML_LIMIT = 4 * 2**20
DEFLATED, LZMA = zipfile.ZIP_DEFLATED, zipfile.ZIP_LZMA

_COMPRESSIONS = (zipfile.ZIP_STORED, DEFLATED, LZMA)
_TIMESTAMP = (1980, 1, 1, 0, 0, 0)
_ENCRYPTED = 1
#: How deep JSON values may be nested: far more than any file needs, far less than Python's stack.
DEPTH = 100
#: Bytes unpacked at once: some compressions unpack whatever they are fed, however much comes out.
_PIECE = 4096
_UNREADABLE = (
    OSError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, ValueError, RuntimeError, TypeError,
    OverflowError, LookupError, MemoryError, struct.error,
)  # fmt: skip
_KEY_PART = r"""(?:[\w-]+|"[^"\n]*"|'[^'\n]*')[ \t]*\.[ \t]*"""
_MANY_DOTS = re.compile(rf"(?<![\w-])(?:{_KEY_PART}){{{DEPTH}}}")
#: Headers of members, exactly as numpy writes them: nothing in a file is evaluated.
_HEADER = re.compile(
    rb"\{'descr': '([<>|=]?[A-Za-z][0-9]{0,4})', 'fortran_order': (True|False), "
    rb"'shape': \((|[0-9]{1,18},|[0-9]{1,18}(?:, [0-9]{1,18})+)\), \} *\n"
)


class ArchiveError(InstanceFileError):
    """A file cannot be read or written, or breaks a rule of its format.

    Parameters
    ----------
    path : str or Path
        The file.
    rule : str
        What is wrong, in words.
    """

    def __init__(self, path: str | Path, rule: str) -> None:
        self.path, self.rule = Path(path), " ".join(rule.split())
        super().__init__(f"{path}: {self.rule}")


@dataclass(frozen=True)
class ArrayRule:
    """What one array of an archive may be.

    Parameters
    ----------
    dtypes : tuple of str
        As numpy spells them, little-endian (``"<f4"``, ``"|u1"``); the first one is preferred.
    axes : tuple of int
        Allowed numbers of axes.
    """

    dtypes: tuple[str, ...]
    axes: tuple[int, ...]


@dataclass(frozen=True)
class Layout:
    """What an archive of one kind holds.

    Parameters
    ----------
    kind : str
        Of the manifest.
    schema_version : int
        The one version that this release reads and writes.
    arrays : mapping of name to ArrayRule
    optional : bool
        Whether arrays may be missing.
    """

    kind: str
    schema_version: int
    arrays: Mapping[str, ArrayRule]
    optional: bool = False

    def header(self) -> dict[str, Any]:
        """Manifest entries that say what the file is."""
        return {"kind": self.kind, "schema_version": self.schema_version}


@dataclass(frozen=True)
class Stream:
    """An array that is written piece by piece.

    Parameters
    ----------
    dtype : numpy dtype
    shape : tuple of int
    pieces : iterable of arrays
        Consecutive pieces, in C order, that together hold ``prod(shape)`` values.
    """

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    pieces: Iterable[NDArray[Any]]

    @classmethod
    def of(cls, array: NDArray[Any]) -> Stream:
        """Whole array as one piece."""
        return cls(array.dtype.newbyteorder("<"), array.shape, (array,))

    def chunks(self) -> Iterator[bytes]:
        """Little-endian bytes, piece by piece."""
        for piece in self.pieces:
            yield np.ascontiguousarray(piece, dtype=self.dtype).tobytes()


# ---------------------------------------------------------------------- writing


def write_archive(
    path: str | Path,
    layout: Layout,
    arrays: Mapping[str, NDArray[Any] | Stream],
    manifest: Mapping[str, Any],
    *,
    compression: int = DEFLATED,
) -> dict[str, Any]:
    """Write an archive, complete or not at all, and return its manifest with the content hash.

    Parameters
    ----------
    path : str or Path
        Replaced in one step once the new file is complete.
    layout : Layout
    arrays : mapping of name to array or Stream
        A `Stream` is never held in memory as a whole.
    manifest : mapping
        JSON values; kind, schema_version and content_hash are filled in.
    compression : int
        `DEFLATED`, or `LZMA` for a fifth less at ten times the effort.

    Raises
    ------
    ArchiveError
        If the file cannot be written.
    InputError
        If the manifest holds anything but JSON values, or pieces do not fill their shape.
    """
    path = as_path(path)
    full = {**json_copy(manifest), **layout.header()}
    full.pop("content_hash", None)

    def write(stream: IO[bytes]) -> None:
        digest = hashlib.sha256()
        with zipfile.ZipFile(stream, "w", DEFLATED) as archive:
            for name in sorted(arrays):
                array = arrays[name]
                member = array if isinstance(array, Stream) else Stream.of(array)
                _write_array(archive, name, member, compression, digest)
            full["content_hash"] = _finish_hash(digest, full)
            archive.writestr(_member(MANIFEST, DEFLATED), dump_json(full, indent=2))

    write_atomically(path, write)
    return full


def write_atomically(path: Path, write: Callable[[IO[bytes]], Any]) -> None:
    """Write a temporary file beside ``path`` and rename it, so that readers see all or nothing.

    Raises
    ------
    ArchiveError
        If the file cannot be written.
    """
    try:
        handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    except OSError as error:
        raise ArchiveError(path, f"cannot be written ({error.strerror})") from error
    try:
        with os.fdopen(handle, "wb") as stream:
            write(stream)
            stream.flush()
            os.fsync(stream.fileno())
        Path(temporary).chmod(0o644)
        Path(temporary).replace(path)
    except BaseException as error:
        Path(temporary).unlink(missing_ok=True)
        if isinstance(error, OSError):
            raise ArchiveError(path, f"cannot be written ({error.strerror})") from error
        raise


def write_text(path: Path, text: str) -> None:
    """Write a text in UTF-8, all of it or nothing; see `write_atomically`."""
    write_atomically(path, lambda stream: stream.write(text.encode()))


def json_copy(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Return a deep copy of a manifest as JSON sees it.

    Raises
    ------
    InputError
        If it holds anything but JSON values.
    """
    try:
        copy: dict[str, Any] = parse_json(dump_json(manifest))
        encode_json(copy)
    except (TypeError, ValueError, RecursionError) as error:
        raise InputError("manifest", f"must hold JSON values only ({error})") from None
    return copy


def parse_json(text: str) -> Any:
    """Value of a JSON text, by ValueError refused where Python's own reader is too lenient.

    That is NaN and infinities, a key that stands twice in an object, and what is nested deeper than `DEPTH`.
    """

    def refuse(word: str) -> Any:
        raise ValueError(f"{word} is not a JSON value")

    def once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        made = dict(pairs)
        if len(made) < len(pairs):
            counts = Counter(key for key, _ in pairs)
            raise ValueError(f"key {counts.most_common(1)[0][0]!r} stands twice")
        return made

    value = json.loads(text, parse_constant=refuse, object_pairs_hook=once)
    check_depth(value)
    return value


def check_depth(value: Any, left: int = DEPTH) -> None:
    """Raise ValueError where dicts and lists are nested deeper than ``left``."""
    if not left:
        raise ValueError(f"nested deeper than {DEPTH}")
    for inner in value.values() if isinstance(value, dict) else value if isinstance(value, list) else ():
        if isinstance(inner, (dict, list)):
            check_depth(inner, left - 1)


def encode_json(value: Mapping[str, Any]) -> bytes:
    """`dump_json` in UTF-8; half a surrogate pair, which JSON can spell, is refused by ValueError."""
    try:
        return dump_json(value).encode()
    except UnicodeEncodeError as error:
        raise ValueError(f"{error.object[error.start : error.end]!r} is not a character") from None


def dump_json(value: Mapping[str, Any], indent: int | None = None) -> str:
    """JSON text with sorted keys, without NaN or infinities."""
    return json.dumps(dict(value), sort_keys=True, ensure_ascii=False, allow_nan=False, indent=indent)


def content_hash(arrays: Mapping[str, NDArray[Any]], manifest: Mapping[str, Any]) -> str:
    """SHA-256 over names, types, shapes and bytes of all arrays, in order of name, and the manifest."""
    digest = hashlib.sha256()
    for name in sorted(arrays):
        stream = Stream.of(arrays[name])
        _hash_header(digest, name, stream)
        for chunk in stream.chunks():
            digest.update(chunk)
    return _finish_hash(digest, manifest)


def _hash_header(digest: Any, name: str, stream: Stream) -> None:
    shape = tuple(map(int, stream.shape))
    digest.update(f"{name} {npy.dtype_to_descr(stream.dtype)} {shape}\n".encode())


def _finish_hash(digest: Any, manifest: Mapping[str, Any]) -> str:
    rest = {key: value for key, value in manifest.items() if key != "content_hash"}
    digest.update(encode_json(rest))
    return f"sha256:{digest.hexdigest()}"


def _write_array(archive: zipfile.ZipFile, name: str, stream: Stream, compression: int, digest: Any) -> None:
    _hash_header(digest, name, stream)
    shape = tuple(map(int, stream.shape))
    header = {"descr": npy.dtype_to_descr(stream.dtype), "fortran_order": False, "shape": shape}
    with archive.open(_member(f"{name}.npy", compression), "w", force_zip64=True) as target:
        npy.write_array_header_1_0(target, header)
        written = 0
        for chunk in stream.chunks():
            digest.update(chunk)
            written += target.write(chunk)
    expected = stream.dtype.itemsize * int(np.prod(shape, dtype=np.int64))
    if written != expected:
        raise InputError(name, f"pieces must hold {expected} bytes for shape {shape}", value=written)


def _member(name: str, compression: int) -> zipfile.ZipInfo:
    """Describe a member with a fixed time stamp and system: equal content gives equal bytes."""
    info = zipfile.ZipInfo(name, _TIMESTAMP)
    info.compress_type = compression
    info.create_system = 3
    info.external_attr = 0o644 << 16
    return info


# ---------------------------------------------------------------------- reading


def as_path(path: Any) -> Path:
    """Path of a file name.

    Raises
    ------
    InputError
        If it is none: of another type, with a null character, or with half a surrogate pair.
    """
    try:
        made = Path(path)
        if b"\0" not in os.fsencode(made):
            return made
    except (TypeError, ValueError):
        pass
    raise InputError("path", "must be a text or a Path that can name a file", value=path)


def regular_file(path: Any, limit: int = SIZE_LIMIT) -> Path:
    """Path of a file that is there and is not endless: no folder, no pipe and no device.

    Raises
    ------
    ArchiveError
        If it is missing, of another kind, or larger than ``limit`` bytes.
    """
    file: Path = as_path(path)
    try:
        found = file.stat()
    except OSError as error:
        raise ArchiveError(file, f"cannot be read ({error.strerror})") from None
    if not stat.S_ISREG(found.st_mode):
        raise ArchiveError(file, "cannot be read (not a regular file)")
    if found.st_size > limit:
        raise ArchiveError(file, f"{found.st_size} bytes, over the limit of {limit}")
    return file


def read_text(path: Any, limit: int = SIZE_LIMIT) -> str:
    """UTF-8 text of a file; a byte order mark, which some editors write, is left out.

    Raises
    ------
    ArchiveError
        If it cannot be read or is something else.
    """
    file = regular_file(path, limit)
    try:
        return file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ArchiveError(file, f"not UTF-8 text ({error.reason})") from None
    except OSError as error:
        raise ArchiveError(file, f"cannot be read ({error.strerror})") from None
    except MemoryError:
        raise ArchiveError(file, "cannot be read (out of memory)") from None


def read_toml(path: Any) -> dict[str, Any]:
    """Tables of a TOML file.

    Raises
    ------
    ArchiveError
        If it cannot be read or is no TOML.
    """
    text = read_text(path, TOML_LIMIT)
    try:
        if _MANY_DOTS.search(text) is not None:  # Python's reader takes the square of their number
            raise ValueError(f"a key with more than {DEPTH} parts")
        value = tomllib.loads(text)
        check_depth(value)
    except (ValueError, RecursionError, MemoryError) as error:
        raise ArchiveError(path, f"not valid TOML ({_reason(error)})") from None
    return value


def read_json(path: Any, limit: int = SIZE_LIMIT) -> Any:
    """Value of a JSON file.

    Raises
    ------
    ArchiveError
        If it cannot be read or is no JSON.
    """
    text = read_text(path, limit)
    try:
        return parse_json(text)
    except (ValueError, RecursionError, MemoryError) as error:
        raise ArchiveError(path, f"not valid JSON ({_reason(error)})") from None


def read_archive(
    path: str | Path, layout: Layout, *, limit: int = SIZE_LIMIT
) -> tuple[dict[str, NDArray[Any]], dict[str, Any]]:
    """Arrays, read-only, and manifest of an archive, checked against its layout and its hash.

    Parameters
    ----------
    path : str or Path
    layout : Layout
    limit : int, byte
        Refuse a file whose content is larger than this when unpacked.

    Raises
    ------
    ArchiveError
        If the file is missing, cut short, too large, or breaks a rule.
    """
    path = regular_file(path)
    try:
        with zipfile.ZipFile(path) as archive:
            manifest = _read_manifest(path, archive)
            check_manifest(path, manifest, layout)
            names = _check_members(path, archive, layout, limit)
            arrays = {name: _read_array(path, archive, name, layout.arrays[name]) for name in names}
    except _UNREADABLE as error:
        rule = f"cannot be read as a file of kind {layout.kind!r} ({_reason(error)})"
        raise ArchiveError(path, rule) from None
    check_hash(path, arrays, manifest)
    return arrays, manifest


def peek_manifest(path: str | Path) -> dict[str, Any]:
    """Manifest of an archive of any kind, its hash not checked.

    Raises
    ------
    ArchiveError
        If there is no readable manifest.
    """
    path = regular_file(path)
    try:
        with zipfile.ZipFile(path) as archive:
            manifest = _read_manifest(path, archive)
    except _UNREADABLE as error:
        raise ArchiveError(path, f"cannot be read as an archive ({_reason(error)})") from None
    if not isinstance(manifest, dict):
        raise ArchiveError(path, f"{MANIFEST}: must be an object")
    return manifest


def _reason(error: BaseException) -> str:
    """One line about an exception."""
    text = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return " ".join(text.split()) or type(error).__name__


def _read_manifest(path: str | Path, archive: zipfile.ZipFile) -> Any:
    found = [member for member in archive.infolist() if member.filename == MANIFEST]
    if len(found) != 1:
        raise ArchiveError(path, f"must hold one {MANIFEST}, holds {len(found)}")
    _check_packing(path, found[0])
    _check_size(path, found[0].file_size, MANIFEST_LIMIT, f"{MANIFEST}: ")
    with archive.open(found[0]) as stream:
        manifest = parse_json(_unpacked(stream).decode("utf-8"))
    if isinstance(manifest, dict):
        encode_json(manifest)
    return manifest


def check_manifest(path: str | Path, manifest: Any, layout: Layout) -> None:
    """Raise unless the manifest is of the layout's kind and version."""
    kind = manifest.get("kind") if isinstance(manifest, dict) else None
    if kind != layout.kind:
        raise ArchiveError(path, f"{MANIFEST}: kind must be {layout.kind!r}, is {kind!r}")
    version = manifest.get("schema_version")
    if version != layout.schema_version:
        raise ArchiveError(
            path, f"schema_version {version!r}: this release reads {layout.schema_version}"
        )  # fmt: skip


def check_hash(path: str | Path, arrays: Mapping[str, NDArray[Any]], manifest: Mapping[str, Any]) -> None:
    """Raise unless the manifest's content hash is that of the arrays and the rest of the manifest."""
    stored = manifest.get("content_hash")
    if stored != content_hash(arrays, manifest):
        rule = f"content does not match its content_hash {stored!r}: the file was changed or damaged"
        raise ArchiveError(path, rule)


def _check_members(path: str | Path, archive: zipfile.ZipFile, layout: Layout, limit: int) -> list[str]:
    """Names of the arrays; wrong names, encryption, odd compression and sizes are refused."""
    members = archive.infolist()
    names = sorted(member.filename for member in members)
    known = sorted([MANIFEST, *(f"{name}.npy" for name in layout.arrays)])
    if layout.optional:
        wrong = len(set(names)) < len(names) or not set(names) <= set(known)
    else:
        wrong = names != known
    if wrong:
        word = "only, each once," if layout.optional else "exactly"
        rule = f"must hold {word} {', '.join(known)}; holds {', '.join(names)[:300]}"
        raise ArchiveError(path, rule)
    for member in members:
        _check_packing(path, member)
    _check_size(path, sum(member.file_size for member in members), limit, "unpacked it is ")
    return [name.removesuffix(".npy") for name in names if name != MANIFEST]


def _check_packing(path: str | Path, member: zipfile.ZipInfo) -> None:
    if member.flag_bits & _ENCRYPTED or member.compress_type not in _COMPRESSIONS:
        raise ArchiveError(path, f"{member.filename}: must be stored, deflated or LZMA, not encrypted")


def _check_size(path: str | Path, size: int, limit: int, what: str) -> None:
    if size > limit:
        raise ArchiveError(path, f"{what}{size} bytes, over the limit of {limit}")


def _unpacked(stream: IO[bytes]) -> bytearray:
    """Rest of a member, taken piece by piece: never much more than the size that it declares."""
    found = bytearray()
    while piece := stream.read(_PIECE):
        found += piece
    return found


def _read_header(stream: IO[bytes]) -> tuple[str, bool, tuple[int, ...]]:
    """Type, whether in Fortran order, and shape of an array, from the start of its member."""
    header = stream.read(int.from_bytes(stream.read(2), "little"))
    match = _HEADER.fullmatch(header)
    if match is None:
        raise ValueError(f"no header as numpy writes it: {bytes(header[:60])!r}")
    shape = tuple(int(length) for length in match[3].replace(b",", b" ").split())
    return match[1].decode(), match[2] == b"True", shape


def _read_array(path: str | Path, archive: zipfile.ZipFile, name: str, rule: ArrayRule) -> NDArray[Any]:
    member = archive.getinfo(f"{name}.npy")
    with archive.open(member) as stream:
        if npy.read_magic(stream) != (1, 0):
            raise ArchiveError(path, f"{member.filename}: must be npy format 1.0")
        dtype, fortran, shape = _read_header(stream)
        if dtype not in rule.dtypes or fortran or len(shape) not in rule.axes:
            raise ArchiveError(path, f"{member.filename}: has no valid type or shape ({dtype}, {shape})")
        size = math.prod(shape) * np.dtype(dtype).itemsize
        if stream.tell() + size != member.file_size:
            raise ArchiveError(path, f"{member.filename}: size does not match its shape {shape}")
        array: NDArray[Any] = freeze(np.frombuffer(_unpacked(stream), dtype=dtype).reshape(shape))
        return array
