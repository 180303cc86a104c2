#!/usr/bin/env bash
# Asking Flower's database for a run's status, while somebody else writes to it.
#
# Versions:  flwr 1.42.0
# Guess:     asking for a status reads. Its SQLite database is in WAL mode, in which readers wait for nobody.
# Behaviour: every get_run_status, also of no run at all, first updates what has expired: two statements that want the
#            one lock for writing. While another connection holds it, the question waits. Each part that
#            a node fetches or sends asks for the status (check_abort), so that the nodes of a busy SuperLink queue.
# Output:    a SELECT beside a writer: 0 s; get_run_status(set()) beside it: waits until it is done;
#            statements of get_run_status(set()): UPDATE, UPDATE
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
python3 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --disable-pip-version-check flwr==1.42.0
cd "$folder"
FLWR_TELEMETRY_ENABLED=0 venv/bin/python - 2> /dev/null <<'PYTHON'
import sqlite3
import threading
import time

from flwr.server.superlink.linkstate.sql_linkstate import SqlLinkState
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.superlink.federation import NoOpFederationManager
from sqlalchemy import Engine, event

HOLD = 1.0  # seconds of the other writer

state = SqlLinkState("state.db", NoOpFederationManager(), ObjectStoreFactory().store())
state.initialize()
state.get_run_status(set())  # whatever is done once
statements = []


@event.listens_for(Engine, "before_cursor_execute")
def note(connection, cursor, statement, *_):
    statements.append(statement.split()[0])


state.get_run_status(set())
of_a_status = list(statements)


def beside_a_writer(ask):
    """Seconds of a question that is asked while another connection writes."""
    locked = threading.Event()

    def write():
        writer = sqlite3.connect("state.db", isolation_level=None)
        writer.execute("BEGIN IMMEDIATE")
        locked.set()
        time.sleep(HOLD)
        writer.execute("ROLLBACK")
        writer.close()

    thread = threading.Thread(target=write)
    thread.start()
    locked.wait()
    start = time.monotonic()
    ask()
    seconds = time.monotonic() - start
    thread.join()
    return seconds


reader = sqlite3.connect("state.db", check_same_thread=False)
read = beside_a_writer(lambda: reader.execute("SELECT count(*) FROM run").fetchone())
asked = beside_a_writer(lambda: state.get_run_status(set()))
print(f"SELECT beside a writer: {read:.1f} s; get_run_status(set()) beside it: {asked:.1f} s")
print("statements of get_run_status(set()):", ", ".join(of_a_status))
assert read < HOLD / 2 < 0.9 * HOLD <= asked
assert of_a_status == ["UPDATE", "UPDATE"], of_a_status
PYTHON
