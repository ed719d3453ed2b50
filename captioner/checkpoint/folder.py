"""Model folders: their files, read without torch.

    model.safetensors   the weights, by default in half precision
    config.json         `captioner.config.ModelConfig` or `TranslationConfig`
    vocabulary.json     the words, by id
    metrics.json        the model's scores and the recipe that trained it

It may have model.safetensors.sha256, the checksum of the weights, and MODEL_CARD.md. An exported model also
has the graphs of `captioner.backends.export`. Nothing in a folder is a pickle, so loading one from a stranger
runs none of their code.
"""

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import msgspec
from safetensors import SafetensorError

from captioner.atomic import readable_folder
from captioner.config import ModelConfig, TranslationConfig
from captioner.errors import ModelFolderError
from captioner.vocabulary import Vocabulary

WEIGHTS, CONFIG, VOCABULARY, METRICS = "model.safetensors", "config.json", "vocabulary.json", "metrics.json"
FILES = (WEIGHTS, CONFIG, VOCABULARY, METRICS)

CHECKSUM = f"{WEIGHTS}.sha256"
"""The weights' SHA-256 in the format of sha256sum, which `sha256sum --check` reads. Older folders lack it."""

CARD, HUB_CARD = "MODEL_CARD.md", "README.md"
"""The name of a model card in a folder, and on the Hugging Face Hub."""

GRAPHS = {"encoder": "encoder.onnx", "start": "start.onnx", "step": "step.onnx"}
"""The graphs of an exported model, which read their weights from `WEIGHTS`."""

LAYOUT_KEY = "captioner.weights_layout"
"""Metadata key under which a graph stores the `weights_layout` that it was exported for."""

SHIPPED_MODEL = Path(__file__).parent.parent / "models" / "everyday"

Config = TypeVar("Config", ModelConfig, TranslationConfig)


def locate_model(folder: Path) -> Path:
    """Where to read a model folder from (see `captioner.atomic.readable_folder`).

    Raises:
        ModelFolderError: there is no such folder, or it lacks a file.
    """
    readable = readable_folder(folder)
    if (folder / "best" / CONFIG).is_file():
        raise ModelFolderError(f"{folder} is the folder of a run; its model is {folder / 'best'}")
    if not readable.is_dir() and (folder.parent / "last").is_dir():
        raise ModelFolderError(
            f"{folder} does not exist yet: the run in {folder.parent} has not finished an epoch; go on with: "
            f"train.py --resume {folder.parent}"
        )
    if not readable.is_dir():
        raise ModelFolderError(
            f"{folder} is not a model folder; give one that contains {', '.join(FILES)}, the name of a model "
            f"that ships ({SHIPPED_MODEL.name}), or hf://OWNER/NAME"
        )
    missing = [name for name in FILES if not (readable / name).is_file()]
    if missing:
        raise ModelFolderError(f"{folder} is not a complete model folder: it lacks {', '.join(missing)}")
    return readable


def read_config(folder: Path) -> ModelConfig:
    """The config of a captioning model's folder.

    Raises:
        ModelFolderError: the folder lacks a file, or the config is damaged or that of a translator.
    """
    return _read_config(folder, ModelConfig)


def read_translation_config(folder: Path) -> TranslationConfig:
    """The config of a translator's folder. Raises: ModelFolderError, as `read_config`."""
    return _read_config(folder, TranslationConfig)


def _read_config(folder: Path, kind: type[Config]) -> Config:
    readable = locate_model(folder)
    with translate_errors(folder):
        content = (readable / CONFIG).read_bytes()
        is_translator = "text_encoder" in msgspec.json.decode(content, type=dict[str, msgspec.Raw])
        if is_translator != (kind is TranslationConfig):
            mismatch = "captions pictures; give one that translates sentences"
            if is_translator:
                mismatch = "translates sentences; give one that captions pictures"
            raise ModelFolderError(f"the model in {folder} {mismatch}")
        return msgspec.json.decode(content, type=kind)


def read_vocabulary(folder: Path) -> Vocabulary:
    """The vocabulary of a model folder. Raises: ModelFolderError, if it is damaged."""
    with translate_errors(folder):
        return Vocabulary.from_json((readable_folder(folder) / VOCABULARY).read_bytes())


def read_metrics(folder: Path) -> dict[str, Any]:
    """The metrics of a model folder. Raises: ModelFolderError, if they are damaged."""
    with translate_errors(folder):
        content = (readable_folder(folder) / METRICS).read_bytes()
        return msgspec.json.decode(content, type=dict[str, Any])


def check_finite(folder: Path, is_finite: Mapping[str, bool]) -> None:
    """Raises: ModelFolderError, naming a weight that is not finite."""
    broken = [name for name, finite in is_finite.items() if not finite]
    if broken:
        raise ModelFolderError(
            f"{folder} has weights that are not finite, such as {broken[0]}; train it again"
        )


def checksum_line(folder: Path) -> str:
    """The content of `CHECKSUM` for a folder's weights. Raises: OSError."""
    return f"{hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest()}  {WEIGHTS}\n"


def write_checksum(folder: Path) -> None:
    """Write the checksum of a folder's weights beside them. Raises: OSError."""
    (folder / CHECKSUM).write_text(checksum_line(folder))


def check_weights(folder: Path) -> None:
    """Compare the weights with their checksum, if the folder has it.

    Raises: ModelFolderError, if they differ, as after an incomplete copy.
    """
    readable = readable_folder(folder)
    with translate_errors(folder):
        if not (readable / CHECKSUM).is_file():
            return
        stated, found = (readable / CHECKSUM).read_bytes(), checksum_line(readable)
    if stated.split()[:1] != found.encode().split()[:1]:
        raise ModelFolderError(
            f"the weights in {folder} are not those of its {CHECKSUM}: they are damaged or were replaced; "
            "copy the folder again from its source"
        )


def has_graphs(folder: Path) -> bool:
    readable = readable_folder(folder)
    return all((readable / name).is_file() for name in GRAPHS.values())


def weights_header(folder: Path) -> tuple[bytes, int]:
    """The JSON header of the weights' file, which lists names and offsets of the tensors, and the offset in
    bytes at which the tensors start. Raises: ModelFolderError."""
    path = readable_folder(folder) / WEIGHTS
    with translate_errors(folder), path.open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        size = path.stat().st_size
        if 8 + length > size:
            raise SafetensorError(f"{WEIGHTS} states a header of {length} bytes and has {size}")
        return file.read(length), 8 + length


def weights_layout(folder: Path) -> str:
    """A digest of the weights' names, shapes and offsets. Raises: ModelFolderError."""
    return hashlib.sha256(weights_header(folder)[0]).hexdigest()


def model_digest(folder: Path) -> str:
    """A digest of what decides a model's captions, other than its decoding options.

    Raises:
        ModelFolderError: the folder is not a complete model.
    """
    readable, digest = locate_model(folder), hashlib.sha256()
    with translate_errors(folder):
        config = msgspec.json.decode((readable / CONFIG).read_bytes(), type=dict[str, Any])
        config |= {"decoding": None, "grid": None}
        digest.update(msgspec.json.encode(config, order="sorted"))
        for name in (WEIGHTS, VOCABULARY, *GRAPHS.values()):
            if (readable / name).is_file():
                digest.update((readable / name).read_bytes())
    return digest.hexdigest()


@contextmanager
def translate_errors(folder: Path) -> Iterator[None]:
    """Turn errors of reading a folder's files into a ModelFolderError that names the folder."""
    try:
        yield
    except (msgspec.DecodeError, SafetensorError, OSError, RecursionError) as error:
        raise ModelFolderError(
            f"{folder} is damaged or truncated: {error}; copy it again from its source"
        ) from error


def to_json(value: Any) -> bytes:
    """A config or metrics as stored in the folder."""
    return msgspec.json.format(msgspec.json.encode(value), indent=2) + b"\n"
