"""Pretrained weights of timm's backbones: whether they can be had, before minutes are spent on trying."""

import socket
from urllib.parse import urlsplit
from urllib.request import getproxies

import timm
from huggingface_hub import constants, try_to_load_from_cache

from captioner.errors import CaptionerError

_FILE_NAMES = ("model.safetensors", "pytorch_model.bin")  # of a model on the hub, as timm looks for them
_TIMEOUT_S = 5


def require_reachable(backbone: str) -> None:
    """Refuse to download weights where there is no network; they may be in the hub's cache.

    Raises:
        CaptionerError: naming the file, where it is, and the flag to give it with.
    """
    config = timm.get_pretrained_cfg(backbone)
    repository = None if config is None else config.hf_hub_id
    if not repository:
        return  # timm downloads it from elsewhere, or has none
    names = (config.hf_hub_filename,) if config.hf_hub_filename else _FILE_NAMES
    if any(isinstance(try_to_load_from_cache(repository, name), str) for name in names):
        return
    endpoint = urlsplit(constants.ENDPOINT)
    if constants.HF_HUB_OFFLINE or not (getproxies() or _connects(endpoint.hostname, endpoint.port or 443)):
        raise CaptionerError(
            f"{endpoint.hostname} cannot be reached, and the weights of {backbone} are not in its cache; "
            f"download {constants.ENDPOINT}/{repository}/resolve/main/{names[0]} elsewhere and give the file "
            "with --weights"
        )


def _connects(host: str | None, port: int) -> bool:
    try:
        socket.create_connection((host or "", port), timeout=_TIMEOUT_S).close()
    except OSError:
        return False
    return True
