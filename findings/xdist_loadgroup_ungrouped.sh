#!/usr/bin/env bash
# Tests of one xdist_group under pytest-xdist's --dist loadgroup, with two releases of pytest.
#
# Versions:  pytest-xdist 3.8.0 with pytest 8.4.2 and 9.2.0
# Guess:     tests of one group run in one process, so a fixture of a module or session is made once for them.
# Behaviour: with pytest 8.4.2 they do. With 9.2.0 they are dealt out one by one, without a warning: xdist appends the
#            group to an attribute of the test from which this release no longer builds the id that the scheduler reads.
#            A suite stays green, and makes its costly fixtures in every process.
# Output:    processes that ran the 8 tests of one group: pytest 8.4.2: 1; pytest 9.2.0: 2
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
cat > "$folder/test_group.py" <<'PYTHON'
import os
import pathlib

import pytest


@pytest.mark.xdist_group("one")
@pytest.mark.parametrize("number", range(8))
def test_notes_its_process(number):
    (pathlib.Path(os.environ["SEEN"]) / str(os.getpid())).touch()
PYTHON
for release in 8.4.2 9.2.0; do
    python3 -m venv "$folder/venv-$release"
    "$folder/venv-$release/bin/pip" install --quiet --disable-pip-version-check "pytest==$release" pytest-xdist==3.8.0
    mkdir "$folder/seen-$release"
    (cd "$folder" && SEEN="$folder/seen-$release" "venv-$release/bin/python" -m pytest -q -p no:cacheprovider \
        -n 2 --dist loadgroup test_group.py > "$folder/output-$release") || { cat "$folder/output-$release"; exit 1; }
    processes=$(ls "$folder/seen-$release" | wc -l)
    echo "pytest $release: $processes"
done | tee "$folder/seen"
diff "$folder/seen" - <<'EXPECTED' || { echo "the behaviour has changed"; exit 1; }
pytest 8.4.2: 1
pytest 9.2.0: 2
EXPECTED
