"""How the threads that compute wait for each other. Loads nothing: it has its effect only before torch is loaded."""

import os

# Rounds in which an idle thread of libgomp, which torch computes with, looks for work before it sleeps; by itself it
# takes 300,000. Where other programs want the cores, whoever is waited for doesn't run while others wait in this way.
# Measured in docs/performance.md.
SPINS = 20_000


def wait_briefly() -> None:
    """Let idle threads sleep soon, unless the environment says how they wait."""
    if not {"GOMP_SPINCOUNT", "OMP_WAIT_POLICY"} & os.environ.keys():
        os.environ["GOMP_SPINCOUNT"] = str(SPINS)
