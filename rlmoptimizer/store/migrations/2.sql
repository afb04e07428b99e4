-- Version 1 to 2: candidates of their own, narrow results, totals kept with the runs. `candidate_id` and `count_of` are
-- functions of the store: the digest of a map of prompts, and the length of a JSON list.

ALTER TABLE runs RENAME TO old_runs;
ALTER TABLE results RENAME TO old_results;
ALTER TABLE charges RENAME TO old_charges;
ALTER TABLE prompts RENAME TO old_prompts;
ALTER TABLE iterations RENAME TO old_iterations;
ALTER TABLE events RENAME TO old_events;

CREATE TABLE compile (
    number INTEGER PRIMARY KEY CHECK (number = 1),
    setup TEXT NOT NULL,
    started_at REAL NOT NULL,
    submission TEXT,
    outcome TEXT,
    finished_at REAL
);

CREATE TABLE candidates (
    id TEXT PRIMARY KEY,
    parent TEXT REFERENCES candidates (id),
    prompts TEXT NOT NULL,
    at REAL NOT NULL
);

CREATE TABLE prompts (
    number INTEGER PRIMARY KEY,
    candidate TEXT NOT NULL REFERENCES candidates (id),
    at REAL NOT NULL
);

CREATE TABLE runs (
    number INTEGER PRIMARY KEY,
    run_id TEXT NOT NULL UNIQUE,
    split TEXT NOT NULL CHECK (split IN ('train', 'val')),
    baseline INTEGER NOT NULL,
    candidate TEXT NOT NULL REFERENCES candidates (id),
    config TEXT NOT NULL,
    request TEXT,
    turn INTEGER NOT NULL,
    answered INTEGER NOT NULL,
    planned INTEGER NOT NULL,
    state TEXT NOT NULL CHECK (state IN ('running', 'finished', 'cancelled', 'failed')),
    evaluated INTEGER,
    passed INTEGER,
    errors INTEGER,
    unanswered INTEGER,
    reused INTEGER,
    score REAL,
    budget_left INTEGER,
    started_at REAL NOT NULL,
    finished_at REAL
);

CREATE TABLE plans (
    run INTEGER PRIMARY KEY REFERENCES runs (number),
    example_ids TEXT NOT NULL
);

CREATE TABLE results (
    run INTEGER NOT NULL REFERENCES runs (number),
    position INTEGER NOT NULL,
    example_id TEXT NOT NULL,
    score REAL NOT NULL,
    passed INTEGER NOT NULL,
    error_kind TEXT,
    counted INTEGER NOT NULL,
    origin INTEGER REFERENCES runs (number),
    taken INTEGER NOT NULL DEFAULT 0,
    seconds REAL NOT NULL,
    detail INTEGER NOT NULL REFERENCES details (id),
    PRIMARY KEY (run, position)
) WITHOUT ROWID;

CREATE UNIQUE INDEX results_by_example ON results (run, example_id);

CREATE TABLE details (
    id INTEGER PRIMARY KEY,
    source_example_id TEXT,
    error TEXT,
    feedback TEXT,
    inputs TEXT NOT NULL,
    expected TEXT NOT NULL,
    predicted TEXT NOT NULL,
    steps TEXT NOT NULL
);

CREATE TABLE charges (
    number INTEGER PRIMARY KEY,
    amount INTEGER NOT NULL CHECK (amount > 0),
    purpose TEXT NOT NULL,
    run INTEGER REFERENCES runs (number),
    at REAL NOT NULL
);

CREATE TABLE IF NOT EXISTS lm_calls (
    number INTEGER PRIMARY KEY,
    role TEXT NOT NULL CHECK (role IN ('root', 'sub', 'eval')),
    model TEXT NOT NULL,
    outcome TEXT NOT NULL CHECK (outcome IN ('answered', 'cached')),
    prompt_tokens INTEGER,
    completion_tokens INTEGER,
    cost INTEGER,
    at REAL NOT NULL
);

CREATE TABLE iterations (
    number INTEGER PRIMARY KEY,
    reasoning TEXT NOT NULL,
    code TEXT NOT NULL,
    output TEXT,
    seconds REAL,
    at REAL NOT NULL
);

CREATE TABLE events (
    number INTEGER PRIMARY KEY,
    kind TEXT NOT NULL,
    data TEXT NOT NULL,
    at REAL NOT NULL
);

INSERT OR IGNORE INTO candidates SELECT candidate_id(prompts), NULL, prompts, at FROM old_prompts ORDER BY number;
INSERT OR IGNORE INTO candidates SELECT candidate_id(prompts), NULL, prompts, started_at FROM old_runs ORDER BY number;
INSERT INTO prompts SELECT number, candidate_id(prompts), at FROM old_prompts;

INSERT INTO runs
SELECT number, run_id, split, baseline, candidate_id(prompts), config, NULL, 0, 1, count_of(planned_ids),
    CASE state WHEN 'running' THEN 'cancelled' ELSE state END,
    (SELECT COUNT(*) FROM old_results WHERE run = number),
    (SELECT CAST(TOTAL(passed) AS INTEGER) FROM old_results WHERE run = number),
    (SELECT COUNT(error) FROM old_results WHERE run = number),
    0, 0,
    (SELECT AVG(score) FROM old_results WHERE run = number),
    budget_left, started_at, finished_at
FROM old_runs;
INSERT INTO plans SELECT number, planned_ids FROM old_runs;

INSERT INTO details SELECT rowid, source_example_id, error, feedback, inputs, expected, predicted, steps FROM old_results;
INSERT INTO results
SELECT run, position, example_id, score, passed, error_kind, 1, NULL, 0, seconds, rowid FROM old_results;

INSERT INTO charges SELECT number, amount, purpose, NULL, at FROM old_charges;
INSERT INTO iterations SELECT number, reasoning, code, output, NULL, at FROM old_iterations;
INSERT INTO events SELECT number, kind, data, at FROM old_events;

DROP TABLE old_events;
DROP TABLE old_iterations;
DROP TABLE old_prompts;
DROP TABLE old_charges;
DROP TABLE old_results;
DROP TABLE old_runs;
