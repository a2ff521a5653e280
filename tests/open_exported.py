"""Opens exported pipelines where patch_diffusion cannot be imported: ``python -I open_exported.py JOBS.json``.

A job is ``{"folder", "out", "calls": [{settings of the call, "scheduler": {options}}]}``; the images of every call go
to ``out`` as safetensors, by the number of the call.
"""

import json
import os
import sys
from pathlib import Path

os.environ["HF_HUB_OFFLINE"] = "1"


class Hidden:
    """Finds no patch_diffusion."""

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "patch_diffusion":
            raise ImportError("patch_diffusion is hidden")


sys.meta_path.insert(0, Hidden())
sys.modules.pop("patch_diffusion", None)

import diffusers  # noqa: E402
import torch  # noqa: E402
from safetensors.torch import save_file  # noqa: E402

torch.set_num_threads(1)
diffusers.utils.logging.disable_progress_bar()


def main(jobs):
    for job in jobs:
        pipe = diffusers.DiffusionPipeline.from_pretrained(job["folder"], trust_remote_code=True)  # pyright: ignore[reportPrivateImportUsage]
        pipe.set_progress_bar_config(disable=True)
        own, found = pipe.scheduler, {}
        for number, call in enumerate(job["calls"]):
            options = call.pop("scheduler", {})
            kind = getattr(diffusers, options.pop("class"), None) if "class" in options else type(own)
            pipe.scheduler = kind.from_config(own.config, **options)
            if "generator" in call:
                call["generator"] = [torch.Generator().manual_seed(seed) for seed in call["generator"]]
            images = pipe(**call).images  # pyright: ignore[reportCallIssue]
            found[str(number)] = torch.as_tensor(images).contiguous()
        save_file(found, job["out"])
    assert not any(name.partition(".")[0] == "patch_diffusion" for name in sys.modules)


if __name__ == "__main__":
    main(json.loads(Path(sys.argv[1]).read_text()))
