-- The run store: everything one optimization did. Version 4 (PRAGMA user_version).
--
-- Columns named in "JSON" comments hold JSON, with three additions for what JSON cannot say:
--   {"$bytes": "<base64>"}   {"$int": "<hexadecimal>"} for integers too long to print   {"$dict": [[key, value], ...]}
--   for a dict that looks like one of these. NaN, Infinity and -Infinity stand as such.
-- Text that is no valid Unicode (lone surrogates) is kept as a BLOB of UTF-8 that lets surrogates pass.
-- Times are seconds since 1970, scores are fractions 0..1, budget is in units.

CREATE TABLE compile (                                -- at most one row
    number       INTEGER PRIMARY KEY CHECK (number = 1),
    setup        TEXT NOT NULL,                       -- JSON: what is optimized, on what and how; a resume compares it
    started_at   REAL NOT NULL,
    submission   TEXT,                                -- JSON: what the agent submitted; NULL: it has not
    agent_end    TEXT,                                -- JSON: how the agent's work ended; NULL: it goes on
    choice       TEXT,                                -- JSON: which prompts are given back and why; NULL: not decided
    outcome      TEXT,                                -- JSON: how it ended; NULL: it has not
    finished_at  REAL
);

CREATE TABLE candidates (                             -- every map of prompts that was ever evaluated or set
    id           TEXT PRIMARY KEY,                    -- a digest of the prompts
    parent       TEXT REFERENCES candidates (id),     -- the candidate that was set when this one came up
    prompts      TEXT NOT NULL,                       -- JSON: step -> instructions, all steps
    at           REAL NOT NULL
);

CREATE TABLE prompts (                                -- the candidate that was set, after every change; the last counts
    number       INTEGER PRIMARY KEY,
    candidate    TEXT NOT NULL REFERENCES candidates (id),
    at           REAL NOT NULL
);

CREATE TABLE runs (
    number       INTEGER PRIMARY KEY,                 -- 1, 2, ... in the order of their beginning
    run_id       TEXT NOT NULL UNIQUE,                -- what the agent calls it
    split        TEXT NOT NULL CHECK (split IN ('train', 'val', 'test')),
    baseline     INTEGER NOT NULL,                    -- 1: the unchanged student, free of charge
    candidate    TEXT NOT NULL REFERENCES candidates (id),
    config       TEXT NOT NULL,                       -- JSON: the selection, as the agent gets it back
    request      TEXT,                                -- JSON: what was asked, before anything was drawn; NULL: unknown
    turn         INTEGER NOT NULL,                    -- of the agent, in which it began; 0: before the first
    answered     INTEGER NOT NULL,                    -- 1: the agent has its result; 0: it may still take it over
    planned      INTEGER NOT NULL,                    -- examples chosen
    repeats      INTEGER NOT NULL CHECK (repeats > 0),  -- rollouts of each example: how often it is evaluated
    state        TEXT NOT NULL CHECK (state IN ('running', 'finished', 'cancelled', 'failed')),
    evaluated    INTEGER,                             -- examples with a verdict on at least one of their rollouts;
                                                      -- this and the next nine: NULL while it runs
    passed       INTEGER,                             -- of these: all of the rollouts that have a verdict passed
    errors       INTEGER,                             -- of these: at least one has an error
    truncated    INTEGER,                             -- of these: an LM was cut short in at least one, see results
    judged       INTEGER,                             -- rollouts that have a verdict
    unanswered   INTEGER,                             -- rollouts of which an LM call failed: no verdict
    reused       INTEGER,                             -- of the judged ones: taken over from another run
    score        REAL,                                -- mean of the evaluated examples' means; NULL: none
    standard_error  REAL,                             -- of the score; NULL: fewer than two examples
    objectives   TEXT,                                -- JSON: name -> mean, as the score; NULL: the metric gave none
    budget_left  INTEGER,                             -- when it ended; NULL: it has not, or nobody told
    started_at   REAL NOT NULL,
    finished_at  REAL
);

CREATE TABLE plans (                                  -- apart from the runs, because they can be long
    run          INTEGER PRIMARY KEY REFERENCES runs (number),
    example_ids  TEXT NOT NULL                        -- JSON: the examples chosen, in order
);

CREATE TABLE results (                                -- what is counted, in narrow rows; all that is read is in details
    run          INTEGER NOT NULL REFERENCES runs (number),
    position     INTEGER NOT NULL,                    -- the example's place in the plan
    rollout      INTEGER NOT NULL,                    -- 0 to repeats - 1
    example_id   TEXT NOT NULL,
    score        REAL NOT NULL,
    passed       INTEGER NOT NULL,
    error_kind   TEXT,                                -- NULL: no error
    truncated    INTEGER NOT NULL,                    -- 1: an answer of an LM to one of its steps was cut at its limit
    counted      INTEGER NOT NULL,                    -- 1: it has a verdict; 0, 2: unanswered, see runs; 2: it
                                                      -- shows what was answered before the LM failed
    origin       INTEGER REFERENCES runs (number),    -- the run it was taken over from; NULL: it was run for this one;
                                                      -- its own run: it came along from the parent of a branch
    taken        INTEGER NOT NULL DEFAULT 0,          -- 1: another run has taken it over
    seconds      REAL NOT NULL,
    objectives   TEXT,                                -- JSON: name -> score; NULL: the metric gave none
    detail       INTEGER NOT NULL REFERENCES details (id),
    PRIMARY KEY (run, position, rollout)
) WITHOUT ROWID;

CREATE UNIQUE INDEX results_by_example ON results (run, example_id, rollout);

CREATE TABLE details (
    id                 INTEGER PRIMARY KEY,
    source_example_id  TEXT,
    error              TEXT,                          -- NULL: no error
    feedback           TEXT,
    inputs             TEXT NOT NULL,                 -- JSON
    expected           TEXT NOT NULL,                 -- JSON
    predicted          TEXT NOT NULL,                 -- JSON
    steps              TEXT NOT NULL                  -- JSON: [[step_name, signature_name, inputs, outputs], ...]; a
                                                      -- fifth where there is more to say: {"error": text,
                                                      -- "completion": what its LM wrote, ...}
);

CREATE TABLE charges (
    number   INTEGER PRIMARY KEY,
    amount   INTEGER NOT NULL CHECK (amount > 0),
    purpose  TEXT NOT NULL,                           -- 'evaluate', 'validate', 'llm_query'
    run      INTEGER REFERENCES runs (number),        -- NULL: it paid for something else than examples
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

CREATE TABLE iterations (                             -- the agent's turns
    number     INTEGER PRIMARY KEY,                   -- 1, 2, ...
    reasoning  TEXT NOT NULL,
    code       TEXT NOT NULL,
    output     TEXT,                                  -- NULL: the turn was begun and has not ended
    seconds    REAL,                                  -- the root LM's thinking included; NULL: nobody told
    at         REAL NOT NULL                          -- its end, or its beginning while it has none
);

CREATE TABLE events (
    number  INTEGER PRIMARY KEY,
    kind    TEXT NOT NULL,
    data    TEXT NOT NULL,                            -- JSON
    at      REAL NOT NULL
);

CREATE TABLE calls (                                  -- what the agent's code asked of its tools, and what it got
    number    INTEGER PRIMARY KEY,                    -- in the order of the answers
    turn      INTEGER NOT NULL,                       -- of the agent, in which the call was made
    tool      TEXT NOT NULL,                          -- 'SUBMIT' too
    shown     TEXT NOT NULL,                          -- the call as one would write it, shortened; for messages only
    request   TEXT NOT NULL,                          -- a digest of tool and arguments
    stray     INTEGER NOT NULL,                       -- 1: it was made or answered while its turn ran no code, so by a
                                                      -- thread that outlived the code that began it
    answer    TEXT,                                   -- JSON; NULL: it raised, or the answer is too long to be kept
    examples  TEXT,                                   -- JSON: [run id, [example ids]], where the answer's `examples`
                                                      -- are rows of the results; NULL: the answer is whole
    error     TEXT,                                   -- JSON: [class name, text] of what it raised; NULL: it did not
    left_out  INTEGER NOT NULL,                       -- bytes of the answer, where it is not kept; else 0
    at        REAL NOT NULL
);

CREATE INDEX calls_by_turn ON calls (turn);
