"""Upload of an exported folder to a model hub, only on request."""

from __future__ import annotations

from pathlib import Path

from patch_diffusion.errors import InputError


def push(folder: Path, name: str, *, public: bool) -> str:
    """Create the repository OWNER/NAME if it does not exist, upload the files of a folder, and return its address.

    The upload uses the login of ``hf auth login``, or of the environment variable HF_TOKEN. An existing repository
    stays as public as it is. If the hub refuses the upload, it is an `InputError`, and the folder stays.
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
