"""What a model is, in a few lines."""

import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from captioner.atomic import readable_folder
from captioner.checkpoint.folder import (
    CARD,
    HUB_CARD,
    WEIGHTS,
    has_graphs,
    read_config,
    read_metrics,
    read_vocabulary,
)


def describe(folder: Path) -> Iterator[tuple[str, str]]:
    """What a model folder contains, as names and texts. Raises: ModelFolderError."""
    config, vocabulary, metrics = read_config(folder), read_vocabulary(folder), read_metrics(folder)
    decoder, decoding, grid = config.decoder, config.decoding, config.grid
    size_mb = (readable_folder(folder) / WEIGHTS).stat().st_size / 1e6
    runs_on = "with or without PyTorch" if has_graphs(folder) else "with PyTorch; not exported"
    yield "folder", f"{folder} ({size_mb:.0f} MB; runs {runs_on})"
    stage = "" if config.stage is None else f" up to stage {config.stage}"
    size_px = config.preprocess.size_px
    yield "encoder", f"{config.backbone}{stage}, {size_px} x {size_px} pixels"
    yield "grid", f"{grid.rows} x {grid.cols} cells of {config.annotation_dim:,} channels"
    attention = f"{decoder.attention} attention" if decoder.attention != "none" else "no attention"
    supervised = ", supervised by annotated objects" if grid.is_supervised else ""
    yield "decoder", f"{decoder.kind} of {decoder.hidden_dim} units, {attention}{supervised}"
    yield "words", f"{len(vocabulary):,}"
    yield (
        "decoding",
        f"beam of {decoding.beam_size}, length penalty {decoding.length_penalty:g}, "
        f"at most {decoding.max_words} words",
    )
    for dataset, scores in dev_scores(metrics).items():
        if {"cider", "bleu_4"} <= scores.keys():
            found = f"CIDEr {scores['cider']:.1f}, BLEU-4 {scores['bleu_4']:.1f}"
            yield "scores", f"{found} on the dev split{f' of {dataset}' if dataset else ''}"
    yield "licence", _licence(folder) or f"not stated in a {CARD}"


def dev_scores(metrics: Mapping[str, Any]) -> dict[str, dict[str, float]]:
    """The scores on the dev split of each data set, by its name, which is empty if there is only one."""
    sets = {name.partition("/")[2]: scores for name, scores in metrics.items() if name.startswith("dev/")}
    return {
        dataset: {name: value for name, value in scores.items() if isinstance(value, int | float)}
        for dataset, scores in (sets or {"": metrics.get("dev")}).items()
        if isinstance(scores, dict)
    }


def read_card(folder: Path) -> str | None:
    """The model card of a folder, under its name there or on the Hub."""
    readable = readable_folder(folder)
    card = next((path for name in (CARD, HUB_CARD) if (path := readable / name).is_file()), None)
    return None if card is None else card.read_text("utf-8", errors="replace")


def _licence(folder: Path) -> str | None:
    """What the header of the model card states, in the form of the Hugging Face Hub."""
    header = re.match(r"---\n(.*?)\n---(?:\n|\Z)", read_card(folder) or "", re.DOTALL)
    stated = r"""^(license\w*): *["']?([^"'#\n]*?)["']? *(?:#.*)?$"""
    fields = dict(re.findall(stated, header[1], re.MULTILINE)) if header else {}
    return fields.get("license_name") or fields.get("license")
