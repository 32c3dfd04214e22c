"""The ledger's tables, views and migrations, and the connection that brings them up to date. The one place
where the schema is told.

Bodies are appended by rowid and lie apart from the narrow tables, so that counting never
walks over text. Money is integer micro-dollars; times are Unix seconds; `rows.id` is
`stage * 2**40 + position`, which keeps pool order without a second index.
"""

import sqlite3
from pathlib import Path
from typing import TYPE_CHECKING

from store.errors import WAS_ONE, DamagedLedger, RunFolderError, is_damage, is_foreign
from store.files import LEDGER

if TYPE_CHECKING:
    import sqlite_utils

VERSION = 4
CHECKPOINT_PAGES = 4000
LOCK_SECONDS = 600.0  # another program may hold SQLite\'s write lock; paid replies wait for it
STAGE_SHIFT = 40  # rows.id = stage << 40 | position

TABLES = """
CREATE TABLE stages (
  id INTEGER PRIMARY KEY, name TEXT NOT NULL UNIQUE, task TEXT NOT NULL,
  samples INTEGER NOT NULL DEFAULT 1,  -- answers wanted for each row
  total INTEGER,                       -- usable pool rows x samples, once known
  bad_rows INTEGER NOT NULL DEFAULT 0);
CREATE TABLE runs (
  id INTEGER PRIMARY KEY, stage INTEGER NOT NULL REFERENCES stages(id),
  started REAL NOT NULL, ended REAL, exit_code INTEGER, pid INTEGER NOT NULL,
  settings TEXT NOT NULL,              -- JSON: model, parameters, prompts, pool, limits
  estimate TEXT,                       -- JSON: what `estimate` said at the start
  -- JSON: share of each limit that was used, 0-1
  utilisation TEXT);
CREATE TABLE rows (
  id INTEGER PRIMARY KEY,              -- stage << 40 | position in the pool
  -- item is JSON: id, instruction, input
  item TEXT NOT NULL,
  -- fingerprint of all that decides a key beside the item
  plan INTEGER NOT NULL);
CREATE TABLE samples (
  stage INTEGER NOT NULL, position INTEGER NOT NULL, sample INTEGER NOT NULL,
  request INTEGER NOT NULL REFERENCES requests(id),
  PRIMARY KEY (stage, position, sample)) WITHOUT ROWID;
CREATE TABLE requests (
  id INTEGER PRIMARY KEY, key BLOB NOT NULL,  -- SHA-256 of what is sent and the sample's index
  sample INTEGER NOT NULL, prompt_tokens INTEGER NOT NULL,
  answer INTEGER REFERENCES responses(id),    -- the reply that counts
  -- the error that ended it; null again by `retry`
  failure INTEGER REFERENCES errors(id));
CREATE TABLE attempts (
  id INTEGER PRIMARY KEY, run INTEGER NOT NULL REFERENCES runs(id),
  request INTEGER NOT NULL REFERENCES requests(id), sent_at REAL NOT NULL,
  -- the most that it can cost
  worst_micro INTEGER NOT NULL);
CREATE TABLE responses (
  id INTEGER PRIMARY KEY, attempt INTEGER NOT NULL REFERENCES attempts(id),
  request INTEGER NOT NULL REFERENCES requests(id),
  outcome TEXT NOT NULL, finish_reason TEXT NOT NULL, model TEXT NOT NULL,
  prompt_tokens INTEGER NOT NULL, completion_tokens INTEGER NOT NULL,
  cached_tokens INTEGER NOT NULL, reasoning_tokens INTEGER NOT NULL,
  cost_micro INTEGER NOT NULL, latency REAL NOT NULL, received_at REAL NOT NULL);
CREATE TABLE bodies (
  response INTEGER PRIMARY KEY REFERENCES responses(id),
  -- the reply as it came: TEXT, or BLOB if it is not UTF-8
  raw NOT NULL);
CREATE TABLE errors (
  id INTEGER PRIMARY KEY, attempt INTEGER NOT NULL, request INTEGER NOT NULL,
  cause TEXT NOT NULL, status INTEGER, message TEXT NOT NULL, at REAL NOT NULL);
CREATE TABLE spending (
  stage INTEGER PRIMARY KEY REFERENCES stages(id),
  spent_micro INTEGER NOT NULL DEFAULT 0,    -- known from usage
  at_risk_micro INTEGER NOT NULL DEFAULT 0,  -- the most that requests without an answer can cost
  prompt_tokens INTEGER NOT NULL DEFAULT 0, completion_tokens INTEGER NOT NULL DEFAULT 0,
  sent INTEGER NOT NULL DEFAULT 0, ended INTEGER NOT NULL DEFAULT 0);
"""

VIEWS = """
CREATE VIEW answers AS
  SELECT s.name AS stage, a.position, a.sample, json_extract(w.item, '$.id') AS id,
    json_extract(w.item, '$.instruction') AS instruction,
    json_extract(w.item, '$.input') AS input,
    CASE WHEN typeof(b.raw) = 'text' AND json_valid(b.raw)
      THEN json_extract(b.raw, '$.choices[0].message.content') END AS output,
    p.outcome, p.model, p.prompt_tokens, p.completion_tokens,
    p.cost_micro / 1e6 AS cost_usd, p.latency, p.received_at
  FROM samples a JOIN stages s ON s.id = a.stage
  JOIN rows w ON w.id = (a.stage << 40) + a.position
  JOIN requests r ON r.id = a.request JOIN responses p ON p.id = r.answer
  JOIN bodies b ON b.response = p.id;
CREATE VIEW failures AS
  SELECT s.name AS stage, a.position, a.sample, json_extract(w.item, '$.instruction') AS instruction,
    e.cause, e.status, e.message, e.at
  FROM samples a JOIN stages s ON s.id = a.stage
  JOIN rows w ON w.id = (a.stage << 40) + a.position
  JOIN requests r ON r.id = a.request JOIN errors e ON e.id = r.failure
  WHERE r.answer IS NULL;
CREATE VIEW unanswered AS
  SELECT t.id AS attempt, t.request, t.run, t.sent_at, t.worst_micro / 1e6 AS worst_usd
  FROM attempts t
  WHERE t.id NOT IN (SELECT attempt FROM responses) AND t.id NOT IN (SELECT attempt FROM errors);
CREATE VIEW costs AS
  SELECT s.name AS stage, c.spent_micro / 1e6 AS spent_usd, c.at_risk_micro / 1e6 AS at_risk_usd,
    c.prompt_tokens, c.completion_tokens, c.sent, c.sent - c.ended AS unanswered
  FROM spending c JOIN stages s ON s.id = c.stage;
CREATE VIEW replies AS
  SELECT p.*, b.raw FROM responses p JOIN bodies b ON b.response = p.id;
"""

# Version 2: batches, and several servers that answer for one teacher.
BATCHES = """
CREATE TABLE facts (  -- of the run folder, made once
  name TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
INSERT INTO facts VALUES ('folder', lower(hex(randomblob(8))));
CREATE TABLE batches (
  id INTEGER PRIMARY KEY,              -- its number, also in the batch's metadata
  run INTEGER NOT NULL REFERENCES runs(id), stage INTEGER NOT NULL REFERENCES stages(id),
  plan INTEGER NOT NULL,               -- fingerprint of all that decided its keys beside the rows
  base_url TEXT NOT NULL,
  -- JSON: USD a million tokens: prompt, completion, cached
  price TEXT NOT NULL,
  requests INTEGER NOT NULL, bytes INTEGER NOT NULL,
  tokens INTEGER NOT NULL,             -- prompt tokens, which the provider counts as enqueued
  worst_micro INTEGER NOT NULL,
  intended_at REAL NOT NULL,           -- before anything was sent
  input_file TEXT,                     -- the provider's id of what was uploaded
  tried_at REAL,                       -- when it was last asked for; it may exist since then
  remote TEXT,                         -- the provider's id of it
  status TEXT NOT NULL,                -- intended, then the provider's word, or withdrawn
  -- all its results are stored, or nothing was asked
  closed_at REAL);
CREATE TABLE enqueued (                -- requests of open batches without a result
  attempt INTEGER PRIMARY KEY REFERENCES attempts(id), batch INTEGER NOT NULL REFERENCES batches(id),
  request INTEGER NOT NULL REFERENCES requests(id),
  -- attempts that failed before this one
  tries INTEGER NOT NULL);
CREATE INDEX enqueued_batch ON enqueued (batch);
"""

ENDPOINTS = """
CREATE TABLE endpoints (id INTEGER PRIMARY KEY, url TEXT NOT NULL UNIQUE);
ALTER TABLE attempts ADD COLUMN endpoint INTEGER REFERENCES endpoints(id);
"""


# Version 3: what a reply says beside its text, what it was priced by, and a checksum for each body.
HONEST = """
ALTER TABLE responses ADD COLUMN cache_write_tokens INTEGER NOT NULL DEFAULT 0;
-- as the reply names it
ALTER TABLE responses ADD COLUMN service_tier TEXT;
-- by our price, where the provider told its own
ALTER TABLE responses ADD COLUMN listed_micro INTEGER;
-- 1: tokens counted by distill
ALTER TABLE responses ADD COLUMN estimated INTEGER NOT NULL DEFAULT 0;
-- the answer, where it is not plainly in the raw reply
ALTER TABLE bodies ADD COLUMN text TEXT;
-- the thinking, where it is not plainly in the raw reply
ALTER TABLE bodies ADD COLUMN reasoning TEXT;
-- CRC-32 of the raw reply's bytes
ALTER TABLE bodies ADD COLUMN checksum INTEGER;
-- what may have been billed all the same
ALTER TABLE errors ADD COLUMN at_risk_micro INTEGER;
CREATE TABLE settlements (  -- attempts in doubt that a person has settled
  attempt INTEGER PRIMARY KEY REFERENCES attempts(id),
  billed_micro INTEGER NOT NULL, at REAL NOT NULL);
DROP VIEW unanswered;
CREATE VIEW unanswered AS
  SELECT t.id AS attempt, t.request, t.run, t.sent_at, t.worst_micro / 1e6 AS worst_usd
  FROM attempts t
  WHERE t.id NOT IN (SELECT attempt FROM responses) AND t.id NOT IN (SELECT attempt FROM errors)
    AND t.id NOT IN (SELECT attempt FROM settlements);
DROP VIEW failures;
CREATE VIEW failures AS
  SELECT s.name AS stage, a.position, a.sample,
    CASE WHEN json_valid(w.item) THEN json_extract(w.item, '$.instruction') END AS instruction,
    e.cause, e.status, e.message, e.at
  FROM samples a JOIN stages s ON s.id = a.stage
  JOIN rows w ON w.id = (a.stage << 40) + a.position
  JOIN requests r ON r.id = a.request JOIN errors e ON e.id = r.failure
  WHERE r.answer IS NULL;
DROP VIEW answers;
CREATE VIEW answers AS
  SELECT s.name AS stage, a.position, a.sample,
    CASE WHEN json_valid(w.item) THEN json_extract(w.item, '$.id') END AS id,
    CASE WHEN json_valid(w.item) THEN json_extract(w.item, '$.instruction') END AS instruction,
    CASE WHEN json_valid(w.item) THEN json_extract(w.item, '$.input') END AS input,
    coalesce(b.text, CASE WHEN typeof(b.raw) = 'text' AND json_valid(b.raw)
      THEN json_extract(b.raw, '$.choices[0].message.content') END) AS output,
    coalesce(b.reasoning, CASE WHEN typeof(b.raw) = 'text' AND json_valid(b.raw)
      THEN coalesce(json_extract(b.raw, '$.choices[0].message.reasoning_content'),
        json_extract(b.raw, '$.choices[0].message.reasoning')) END) AS reasoning,
    p.outcome, p.model, p.prompt_tokens, p.completion_tokens, p.reasoning_tokens,
    p.cost_micro / 1e6 AS cost_usd, p.latency, p.received_at
  FROM samples a JOIN stages s ON s.id = a.stage
  JOIN rows w ON w.id = (a.stage << 40) + a.position
  JOIN requests r ON r.id = a.request JOIN responses p ON p.id = r.answer
  JOIN bodies b ON b.response = p.id;
"""


# Version 4: a checksum for each row too (CRC-32 of its JSON).
ROW_CHECKSUMS = "ALTER TABLE rows ADD COLUMN checksum INTEGER"


def version_words(path: object, version: int) -> str:
    """What to say of a ledger whose version is not ours."""
    if version > VERSION:
        return f"{path} was written by a newer distill (version {version}, this one knows {VERSION})"
    return f"{path} is not ready: it is empty or being made; run generate first"


def is_newer(connection: sqlite3.Connection) -> bool:
    """Whether a ledger whose version is above ours has been brought there: else its header is damaged."""
    try:
        (made,) = connection.execute("SELECT count(*) FROM _sqlite_migrations").fetchone()
    except sqlite3.OperationalError:
        return True
    return int(made) > VERSION


def migrate(connection: sqlite3.Connection) -> None:
    """Brings the ledger to VERSION; the fast path costs one PRAGMA and imports nothing."""
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    if version == VERSION:
        return
    import sqlite_utils
    from sqlite_utils.migrations import Migrations

    migrations = Migrations("distill")

    @migrations()
    def m001_ledger(db: sqlite_utils.Database) -> None:
        _execute(db, TABLES + VIEWS)

    @migrations()
    def m002_batches_and_endpoints(db: sqlite_utils.Database) -> None:
        _execute(db, BATCHES + ENDPOINTS)

    @migrations()
    def m003_honest_replies(db: sqlite_utils.Database) -> None:
        _execute(db, HONEST)

    @migrations()
    def m004_row_checksums(db: sqlite_utils.Database) -> None:
        _execute(db, ROW_CHECKSUMS)

    migrations.apply(sqlite_utils.Database(connection))
    connection.execute(f"PRAGMA user_version = {VERSION}")


def _execute(db: "sqlite_utils.Database", script: str) -> None:
    for statement in script.split(";\n"):
        if statement.strip():
            db.execute(statement)


def connect_writer(run: Path) -> sqlite3.Connection:
    """The one writing connection, with the schema brought up to date."""
    try:
        connection = sqlite3.connect(
            run / LEDGER, isolation_level=None, check_same_thread=False, timeout=LOCK_SECONDS
        )
        connection.execute("PRAGMA page_size = 8192")
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("PRAGMA synchronous = FULL")
        connection.execute(f"PRAGMA wal_autocheckpoint = {CHECKPOINT_PAGES}")
        (version,) = connection.execute("PRAGMA user_version").fetchone()
        if version > VERSION:
            if not is_newer(connection):
                raise DamagedLedger(run / LEDGER, f"its version is given as {version}")
            raise RunFolderError(version_words(run / LEDGER, version))
        migrate(connection)
    except UnicodeDecodeError as error:  # in the words of SQLite, which quotes the schema
        raise DamagedLedger(run / LEDGER, "its schema cannot be read") from error
    except sqlite3.Error as error:
        if is_damage(error) and not is_foreign(error):
            raise DamagedLedger(run / LEDGER, error) from error
        more = WAS_ONE if is_foreign(error) else ""
        raise RunFolderError(f"cannot open {run / LEDGER}: {error}{more}") from error
    return connection
