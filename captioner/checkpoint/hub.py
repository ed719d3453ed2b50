"""Models on the Hugging Face Hub: download and upload of model folders."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from huggingface_hub import (
    CommitOperationAdd,
    CommitOperationDelete,
    EvalResult,
    HfApi,
    ModelCard,
    ModelCardData,
    constants,
    snapshot_download,
)
from huggingface_hub.errors import (
    GatedRepoError,
    HfHubHTTPError,
    HFValidationError,
    HTTPError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
    RevisionNotFoundError,
)

from captioner.checkpoint.description import dev_scores, read_card
from captioner.checkpoint.folder import (
    CARD,
    CHECKSUM,
    FILES,
    GRAPHS,
    HUB_CARD,
    check_weights,
    checksum_line,
    locate_model,
    read_config,
    read_metrics,
)
from captioner.config import ModelConfig
from captioner.errors import CaptionerError, ModelFolderError, one_line

_USE = """An image captioner with visual attention. Its CNN is {backbone}.

    pip install 'captioner[hub]'
    captioner caption photo.jpg --model hf://{repository}
"""

_TIMEOUT_S = 10.0
_SERVER_ERROR, _TOO_MANY = 500, 429
_REFUSED = (401, 403)


def download_model(repository: str, *, revision: str | None = None) -> Path:
    """The folder in the Hub's cache with a model, downloaded if it is missing.

    Raises:
        ModelFolderError: there is no such repository or revision, or it is not a captioner model; or the Hub
            cannot be reached and the model is not in the cache.
    """
    name = f"hf://{repository}" + (f"@{revision}" if revision else "")
    wanted = [*FILES, CHECKSUM, *GRAPHS.values(), HUB_CARD]
    try:
        is_reachable = _check_files(name, repository, revision)
        found = snapshot_download(
            repository, revision=revision, allow_patterns=wanted, local_files_only=not is_reachable
        )
    except GatedRepoError as error:
        raise ModelFolderError(
            f"{name} is for those who accepted its terms: do so on its page, then `hf auth login`"
        ) from error
    except (RepositoryNotFoundError, RevisionNotFoundError) as error:
        what = "revision" if isinstance(error, RevisionNotFoundError) else "public repository"
        raise ModelFolderError(
            f"{name}: the Hub has no such {what}; log in with `hf auth login` if it is private"
        ) from error
    except HFValidationError as error:
        raise ModelFolderError(f"{name}: {error}") from error
    except LocalEntryNotFoundError as error:
        raise ModelFolderError(
            f"{name}: {constants.ENDPOINT} cannot be reached, and the model is not in the cache "
            f"{constants.HF_HUB_CACHE}"
        ) from error
    except (HTTPError, OSError) as error:
        raise ModelFolderError(f"{name}: the download failed: {one_line(error)}") from error
    return locate_model(Path(str(found)))


def _check_files(name: str, repository: str, revision: str | None) -> bool:
    """Refuse a repository that is not a captioner model before anything large is downloaded.

    Returns: whether the Hub answers.

    Raises:
        RepositoryNotFoundError, RevisionNotFoundError.
        ModelFolderError: it lacks a file.
    """
    try:
        info = HfApi().model_info(repository, revision=revision, timeout=_TIMEOUT_S)
    except (RepositoryNotFoundError, RevisionNotFoundError):
        raise
    except HfHubHTTPError as error:
        if error.response.status_code >= _SERVER_ERROR or error.response.status_code == _TOO_MANY:
            return False
        raise
    except (HTTPError, OSError):
        return False
    files = {one.rfilename for one in info.siblings or ()}
    missing = [one for one in FILES if one not in files]
    if missing:
        raise ModelFolderError(f"{name} is not a captioner model: it lacks {', '.join(missing)}")
    return True


def upload_model(folder: Path, repository: str, *, license_id: str | None, is_private: bool) -> str:
    """Write a model folder into a repository on the Hub, which is created if it does not exist.

    Only the model's own files are uploaded. Its card becomes the repository's, with a header that the Hub
    reads; without a card one is made. `license_id` replaces the licence that the card states.

    Returns: the address of the repository.

    Raises:
        ModelFolderError: the folder is not a captioning model.
        CaptionerError: no licence is stated, the Hub refuses, or the repository exists and is public although
            it should be private.
    """
    source = locate_model(folder)
    config = read_config(folder)
    check_weights(folder)
    card = model_card(folder, config, read_metrics(folder), repository=repository, license_id=license_id)
    files: dict[str, Path | bytes] = {
        name: source / name for name in (*FILES, *GRAPHS.values()) if (source / name).is_file()
    }
    files |= {CHECKSUM: checksum_line(source).encode(), HUB_CARD: str(card).encode()}
    operations: list[CommitOperationAdd | CommitOperationDelete] = [
        CommitOperationAdd(name, content) for name, content in files.items()
    ]
    api = HfApi(library_name="captioner")
    with _explained(repository):
        api.create_repo(repository, private=is_private or None, exist_ok=True)
        info = api.model_info(repository, timeout=_TIMEOUT_S)
        if is_private and not info.private:
            raise CaptionerError(
                f"{repository} exists and is public; make it private, or leave --private out"
            )
        there = {one.rfilename for one in info.siblings or ()}
        stale = there & set(GRAPHS.values()) - set(files)  # of a model that was there before
        operations += [CommitOperationDelete(name) for name in sorted(stale)]
        commit = api.create_commit(repository, operations, commit_message="Upload with captioner")
    return f"{constants.ENDPOINT}/{repository} (hf://{repository}@{commit.oid})"


@contextmanager
def _explained(repository: str) -> Iterator[None]:
    """Turn the Hub's refusals into one line."""
    try:
        yield
    except HFValidationError as error:
        raise CaptionerError(f"{repository}: {error}") from error
    except HfHubHTTPError as error:
        hint = "; log in with: hf auth login" if error.response.status_code in _REFUSED else ""
        raise CaptionerError(f"the Hub refuses {repository}: {one_line(error)}{hint}") from error
    except (HTTPError, OSError, RuntimeError) as error:
        reason = f"{constants.ENDPOINT} cannot be reached, or the upload failed"
        raise CaptionerError(f"{reason}: {one_line(error)}") from error


def model_card(
    folder: Path, config: ModelConfig, metrics: dict[str, Any], *, repository: str, license_id: str | None
) -> ModelCard:
    """The card of a model folder, or a short one if it has none, with the fields that the Hub lists.

    Raises:
        CaptionerError: neither the card nor `license_id` states a licence.
    """
    name = repository.rpartition("/")[2]
    use = _USE.format(backbone=config.backbone, repository=repository)
    text = f"---\nlibrary_name: captioner\n---\n\n# {name}\n\n{use}"
    card = ModelCard(read_card(folder) or text, ignore_metadata_errors=True)
    header = card.data.to_dict()
    header |= {"library_name": "captioner", "pipeline_tag": "image-to-text"}
    header["tags"] = sorted({*header.get("tags", ()), "image-captioning", "attention"})
    if license_id is not None:
        header = {key: value for key, value in header.items() if not key.startswith("license_")}
        header["license"] = license_id
    if not header.get("license"):
        raise CaptionerError(f"no licence is stated in {folder / CARD}; give one with --license, such as mit")
    if "model-index" not in header:
        header |= {"model_name": name, "eval_results": list(_results(metrics)) or None}
    card.data = ModelCardData(**header, ignore_metadata_errors=True)
    return card


def _results(metrics: dict[str, Any]) -> Iterator[EvalResult]:
    """The scores on the dev split of each data set."""
    for dataset, scores in dev_scores(metrics).items():
        for metric, title in (("cider", "CIDEr"), ("bleu_4", "BLEU-4"), ("rouge_l", "ROUGE-L")):
            if metric in scores:
                yield EvalResult(
                    task_type="image-to-text",
                    dataset_type=dataset or "dev",
                    dataset_name=dataset or "dev",
                    dataset_split="dev",
                    metric_type=metric,
                    metric_name=title,
                    metric_value=round(scores[metric], 2),
                )
