"""An exported folder to a model hub, only when it is asked for."""

from __future__ import annotations

import re
from pathlib import Path

from patch_diffusion.errors import InputError

_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


def check_repository(name: str) -> None:
    """Refuse what cannot be pushed to, before there is anything to push.

    Raises:
        InputError: no such name of a repository, or the package for it is missing.
    """
    if not _NAME.fullmatch(name) or ".." in name or "--" in name:
        raise InputError(f"a repository is given as OWNER/NAME, not '{name}'")
    try:
        import huggingface_hub  # noqa: F401
    except ImportError:
        raise InputError("--push needs huggingface_hub: pip install 'patch_diffusion[export]'") from None


def push(folder: Path, name: str, *, public: bool) -> str:
    """Make the repository where it is not there, and put the files of a folder into it; its address.

    Whoever is logged in by ``hf auth login``, or by the environment variable HF_TOKEN, is its owner.

    Args:
        folder: what is to be seen there.
        name: OWNER/NAME.
        public: make a new repository public; one that is there stays as it is.

    Raises:
        InputError: the hub does not take it; the folder stays.
    """
    from huggingface_hub import HfApi

    hub = HfApi(library_name="patch_diffusion")
    try:
        address = str(hub.create_repo(name, private=not public, exist_ok=True))
        hub.upload_folder(repo_id=name, folder_path=folder, commit_message="Exported by patch_diffusion")
    # Without a network, a login or a permission, errors of several libraries come here, with nothing in common.
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(
            f"{folder} is exported but was not pushed to {name}: {reason[:300].rstrip('.')}; when that is mended, "
            f"hf auth login and hf upload {name} {folder} do it"
        ) from None
    return address
