-- The run store: everything one optimization did. Version 1 (PRAGMA user_version).
--
-- Columns named in "JSON" comments hold JSON, with three additions for what JSON cannot say:
--   {"$bytes": "<base64>"}   {"$int": "<hexadecimal>"} for integers too long to print   {"$dict": [[key, value], ...]}
--   for a dict that looks like one of these. NaN, Infinity and -Infinity stand as such.
-- Text that is no valid Unicode (lone surrogates) is kept as a BLOB of UTF-8 that lets surrogates pass.
-- Times are seconds since 1970, scores are fractions 0..1.

CREATE TABLE runs (
    number       INTEGER PRIMARY KEY,                 -- 1, 2, ... in the order of their beginning
    run_id       TEXT NOT NULL UNIQUE,                -- what the agent calls it
    split        TEXT NOT NULL CHECK (split IN ('train', 'val')),
    baseline     INTEGER NOT NULL,                    -- 1: the unchanged student, free of charge
    config       TEXT NOT NULL,                       -- JSON: the selection
    prompts      TEXT NOT NULL,                       -- JSON: step -> instructions that were evaluated
    planned_ids  TEXT NOT NULL,                       -- JSON: example ids, in order
    state        TEXT NOT NULL CHECK (state IN ('running', 'finished', 'cancelled')),
    budget_left  INTEGER,                             -- units, when it was finished
    started_at   REAL NOT NULL,
    finished_at  REAL
);

CREATE TABLE results (
    run                INTEGER NOT NULL REFERENCES runs (number),
    position           INTEGER NOT NULL,              -- place in planned_ids
    example_id         TEXT NOT NULL,
    source_example_id  TEXT,
    score              REAL NOT NULL,
    passed             INTEGER NOT NULL,
    error              TEXT,                          -- NULL: no error
    error_kind         TEXT,
    feedback           TEXT,
    seconds            REAL NOT NULL,
    inputs             TEXT NOT NULL,                 -- JSON
    expected           TEXT NOT NULL,                 -- JSON
    predicted          TEXT NOT NULL,                 -- JSON
    steps              TEXT NOT NULL,                 -- JSON: [[step_name, signature_name, inputs, outputs], ...]
    PRIMARY KEY (run, example_id)
);

CREATE TABLE charges (
    number   INTEGER PRIMARY KEY,
    amount   INTEGER NOT NULL CHECK (amount > 0),     -- units
    purpose  TEXT NOT NULL,                           -- 'evaluate', 'llm_query', ...
    at       REAL NOT NULL
);

CREATE TABLE lm_calls (                               -- every LM call that was answered, also in baseline runs
    number             INTEGER PRIMARY KEY,
    role               TEXT NOT NULL CHECK (role IN ('root', 'sub', 'eval')),
    model              TEXT NOT NULL,
    outcome            TEXT NOT NULL CHECK (outcome IN ('answered', 'cached')),
    prompt_tokens      INTEGER,                       -- NULL: not reported
    completion_tokens  INTEGER,                       -- NULL: not reported
    cost               INTEGER,                       -- picodollars (1e-12 USD); NULL: the price is not known
    at                 REAL NOT NULL
);

CREATE TABLE prompts (                                -- the prompt map after every change; the last one counts
    number   INTEGER PRIMARY KEY,
    prompts  TEXT NOT NULL,                           -- JSON: step -> instructions, all steps
    at       REAL NOT NULL
);

CREATE TABLE iterations (                             -- the agent's turns
    number     INTEGER PRIMARY KEY,
    reasoning  TEXT NOT NULL,
    code       TEXT NOT NULL,
    output     TEXT NOT NULL,
    at         REAL NOT NULL
);

CREATE TABLE events (
    number  INTEGER PRIMARY KEY,
    kind    TEXT NOT NULL,
    data    TEXT NOT NULL,                            -- JSON
    at      REAL NOT NULL
);
