"""What holds for every test: one thread, no network, no model hub, shapes checked at run time.

The network itself is switched off by `--disable-socket` in pyproject.toml. Unix sockets stay open: multiprocessing uses
them between its own processes.
"""

import os

from jaxtyping import install_import_hook

# Before torch is imported, here and in every child process. Two xdist workers with a thread per core each were many times
# slower than one thread each.
for variable in ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ[variable] = "1"
os.environ.update(
    HF_HUB_OFFLINE="1", TRANSFORMERS_OFFLINE="1", HF_HUB_DISABLE_TELEMETRY="1", TOKENIZERS_PARALLELISM="false", WANDB_MODE="disabled"
)

# Annotations such as Float[Tensor, "example token"] are checked on every call, in tests only. The rest of the package is left
# out: beartype warns about OmegaConf's types, and a warning is an error here.
install_import_hook(["medvlm_dpo.objectives", "medvlm_dpo.logps", "medvlm_dpo.backbones"], "beartype.beartype")
