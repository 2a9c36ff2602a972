"""Fine-tune ESM-2 on your own measurements, and predict with the result.

>>> import esmtune
>>> run = esmtune.train([("MKTV", 0.1), ("GGSG", 0.9), ("MKTI", 0.2), ("GGAG", 1.1)] * 3,
...                     encoder="random:esm2_t6_8M_UR50D", epochs=1, valid_fraction=0, test_fraction=0)
>>> predictions = run.predictor.predict(["MKTL", "GGGG"])
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from esmtune.applying import embed, merge, predict
    from esmtune.checking import Check, check
    from esmtune.comparing import Comparison, compare
    from esmtune.diagnosis import doctor
    from esmtune.encoders import load_encoder, save_huggingface
    from esmtune.ensembles import Ensemble
    from esmtune.evaluating import evaluate
    from esmtune.fitting import train
    from esmtune.loading import load
    from esmtune.planning import Plan, plan
    from esmtune.predictor import Predictor
    from esmtune.reporting import report
    from esmtune.runs import Run
    from esmtune.searching import Search, search
    from esmtune.splitting import split

__version__ = "0.2.0"
__all__ = [
    "Check",
    "Comparison",
    "Ensemble",
    "Plan",
    "Predictor",
    "Run",
    "Search",
    "check",
    "compare",
    "doctor",
    "embed",
    "evaluate",
    "load",
    "load_encoder",
    "merge",
    "plan",
    "predict",
    "report",
    "save_huggingface",
    "search",
    "split",
    "train",
]

# Imported on first use: importing esmtune itself costs nothing.
_ROOMS = {
    "doctor": "diagnosis",
    "Check": "checking",
    "check": "checking",
    "Comparison": "comparing",
    "compare": "comparing",
    "report": "reporting",
    "load_encoder": "encoders",
    "save_huggingface": "encoders",
    "Ensemble": "ensembles",
    "evaluate": "evaluating",
    "load": "loading",
    "Plan": "planning",
    "plan": "planning",
    "Predictor": "predictor",
    "Run": "runs",
    "Search": "searching",
    "search": "searching",
    "split": "splitting",
    "train": "fitting",
}


def __getattr__(name: str) -> Any:
    if name not in __all__:
        raise AttributeError(f"module 'esmtune' has no attribute {name!r}")
    return getattr(importlib.import_module(f"esmtune.{_ROOMS.get(name, 'applying')}"), name)
