"""Whether every dataset of an experiment is in the cache or can be had: exit 0, or 3 with the reason on stderr."""

import os
import sys
from pathlib import Path

from repro import config, data
from repro.project import Project, cache_folder
from repro.verbs import doctor

project = Project.find(Path.cwd())
wanted = data.rooted(config.compose(project, [f"experiment={sys.argv[1]}"]).data, project.root)
found = doctor.datasets(wanted, cache=cache_folder(), local=os.environ.get("REPRO_DATA_SOURCE"))
missing = [finding for finding in found if finding.level is not doctor.Level.OK]
for finding in missing:
    sys.stderr.write(f"{finding.what}: {finding.detail}\n  try: {finding.hint}\n")
sys.exit(3 if missing else 0)
