"""What a model is, in a few lines."""

import re
from collections.abc import Iterator
from pathlib import Path

from captioner.atomic import readable_folder
from captioner.checkpoint.folder import (
    CARD,
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
    yield "encoder", f"{config.backbone}, {config.preprocess.size_px} x {config.preprocess.size_px} pixels"
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
    sets = {name.partition("/")[2]: scores for name, scores in metrics.items() if name.startswith("dev/")}
    for dataset, scores in (sets or {"": metrics.get("dev", {})}).items():
        numbers = [scores.get(name) for name in ("cider", "bleu_4")] if isinstance(scores, dict) else []
        if numbers and all(isinstance(number, int | float) for number in numbers):
            found = f"CIDEr {scores['cider']:.1f}, BLEU-4 {scores['bleu_4']:.1f}"
            yield "scores", f"{found} on the dev split{f' of {dataset}' if dataset else ''}"
    yield "licence", _licence(folder) or f"not stated in a {CARD}"


def _licence(folder: Path) -> str | None:
    """What the header of the model card states, in the form of the Hugging Face Hub."""
    readable = readable_folder(folder)
    card = next((path for name in (CARD, "README.md") if (path := readable / name).is_file()), None)
    if card is None:
        return None
    header = re.match(r"---\n(.*?)\n---(?:\n|\Z)", card.read_text("utf-8", errors="replace"), re.DOTALL)
    stated = r"""^(license\w*): *["']?([^"'#\n]*?)["']? *(?:#.*)?$"""
    fields = dict(re.findall(stated, header[1], re.MULTILINE)) if header else {}
    return fields.get("license_name") or fields.get("license")
