"""Upload of an exported folder to a model hub, only on request."""

from __future__ import annotations

import re
from pathlib import Path

from patch_diffusion.errors import InputError, need

_NAME = re.compile(r"[\w-][\w.-]*/[\w-][\w.-]*")


def check_repository(name: str) -> None:
    """Raise InputError if a repository of this name cannot be pushed to, before anything is exported.

    Raises:
        InputError: the name is not OWNER/NAME, or the package huggingface_hub is missing.
    """
    if not _NAME.fullmatch(name) or ".." in name or "--" in name:
        raise InputError(f"a repository is given as OWNER/NAME, not '{name}'")
    need("huggingface_hub", "export", "--push")


def push(folder: Path, name: str, *, public: bool) -> str:
    """Create a repository if it does not exist, upload the files of a folder to it, and return its address.

    The upload uses the login of ``hf auth login``, or of the environment variable HF_TOKEN.

    Args:
        folder: the folder to upload.
        name: OWNER/NAME of the repository.
        public: whether to make a new repository public; an existing one stays as it is.

    Raises:
        InputError: the hub refuses the upload; the folder stays.
    """
    from huggingface_hub import HfApi

    hub = HfApi(library_name="patch_diffusion")
    try:
        address = str(hub.create_repo(name, private=not public, exist_ok=True))
        hub.upload_folder(repo_id=name, folder_path=folder, commit_message="Exported by patch_diffusion")
    # Errors of network, login and permission come from several libraries and share no base class.
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(
            f"{folder} is exported but was not pushed to {name}: {reason[:300].rstrip('.')}; when that is mended, "
            f"hf auth login and hf upload {name} {folder} do it"
        ) from None
    return address
