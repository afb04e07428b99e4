-- A small run store of version 1.

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

INSERT INTO runs VALUES
    (1, 'r1', 'train', 1, '{"limit": null}', '{"answer": "old"}', '["1", "2"]', 'finished', 10, 1.0, 2.0),
    (2, 'r2', 'train', 0, '{"limit": 2}', '{"answer": "new"}', '["1", "2"]', 'running', NULL, 3.0, NULL);
INSERT INTO results VALUES
    (1, 0, '1', NULL, 1.0, 1, NULL, NULL, 'fine', 0.5, '{"q": "1"}', '{"answer": "a"}', '{"answer": "a"}',
     '[["answer", "QA", {"q": "1"}, {"answer": "a"}]]'),
    (1, 1, '2', 's2', 0.0, 0, 'KeyError: ''x''', 'program', NULL, 0.5, '{"q": "2"}', '{"answer": "a"}', 'null', '[]'),
    (2, 0, '1', NULL, 1.0, 1, NULL, NULL, NULL, 0.5, '{"q": "1"}', '{"answer": "a"}', '{"answer": "a"}', '[]');
INSERT INTO charges VALUES (1, 1, 'evaluate', 3.0), (2, 2, 'llm_query', 4.0);
INSERT INTO prompts VALUES (1, '{"answer": "old"}', 1.0), (2, '{"answer": "new"}', 2.5);
INSERT INTO iterations VALUES (1, 'why', 'print(1)', '1', 5.0);
INSERT INTO events VALUES (1, 'kind', '{"a": 1}', 6.0);
PRAGMA application_id = 1380732239;
PRAGMA user_version = 1;
PRAGMA journal_mode = WAL;
