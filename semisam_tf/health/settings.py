"""The doctor's flags: those of training, and its own."""

from __future__ import annotations

import dataclasses

from semisam_tf.config import Config
from semisam_tf.options import option


@dataclasses.dataclass(frozen=True)
class DoctorConfig(Config):
    """Looks at the installation, and with the flags of a run at its data, SAM, memory, disk and time, a line each."""

    cases: str = option("", "File of the cases to be scored later. Empty: <data_dir>/test.list, if it is there.")
    timing: bool = option(True, "Take a few steps of the run to say how long it will take; --notiming leaves it out.")

    def of_the_run(self) -> Config:
        """Training's settings."""
        return Config(**{field.name: getattr(self, field.name) for field in dataclasses.fields(Config)})
