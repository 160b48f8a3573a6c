"""What holds for every test: one thread, no network, no model hub, shapes checked at run time.

The network itself is switched off by `--disable-socket` in pyproject.toml. Unix sockets stay open: multiprocessing uses
them between its own processes.
"""

import os
import sys
from pathlib import Path

import pytest
from jaxtyping import install_import_hook

sys.path.append(str(Path(__file__).parent))  # for core_world and runtime_checks: test folders are no packages

# Before torch is imported, here and in every child process. Two xdist workers with a thread per core each were many times
# slower than one thread each.
for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[variable] = "1"
os.environ.update(
    HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1", HF_HUB_DISABLE_TELEMETRY="1", TOKENIZERS_PARALLELISM="false", WANDB_MODE="disabled"
)

# Annotations such as Float[Tensor, "example token"] are checked on every call, in tests only. The rest of the package is left
# out: beartype warns about OmegaConf's types, and a warning is an error here.
install_import_hook(["medvlm_dpo.objectives", "medvlm_dpo.logps", "medvlm_dpo.backbones"], "runtime_checks.checked")


@pytest.fixture(scope="session")
def untrained_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the architecture, tokenizer and image settings of phantom_llava and random weights, the same in every process."""
    import torch  # not at the top: tests of the launcher need no torch

    from medvlm_dpo.data.phantom.tiny_models import build_model, save_image_settings, train_tokenizer

    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("untrained") / "tiny"
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = build_model("phantom_llava")
    model.save_pretrained(folder)
    train_tokenizer("phantom_llava").save_pretrained(folder)
    save_image_settings(folder)
    return folder
