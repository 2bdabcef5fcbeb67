-- For SQLite and PostgreSQL alike: BIGINT and TEXT alone, times in Unix milliseconds, digests in hexadecimal, lists and errors as JSON.

CREATE TABLE keys (
    id TEXT NOT NULL PRIMARY KEY,
    digest TEXT NOT NULL UNIQUE,
    name TEXT NOT NULL,
    prefix TEXT NOT NULL,
    scope TEXT NOT NULL,
    tenant TEXT NOT NULL,
    created_unix_ms BIGINT NOT NULL,
    last_used_unix_ms BIGINT,
    revoked_unix_ms BIGINT,
    sandboxes_max BIGINT,
    vcpus_max BIGINT,
    memory_mib_max BIGINT
);
CREATE INDEX keys_in_order ON keys (created_unix_ms, id);

-- Numbers that only grow. Who takes one holds the row until the transaction ends, so numbers appear in order and without holes.
CREATE TABLE counters (
    name TEXT NOT NULL PRIMARY KEY,
    value BIGINT NOT NULL
);
INSERT INTO counters (name, value) VALUES ('audit', 0);

CREATE TABLE audit (
    id BIGINT NOT NULL PRIMARY KEY,
    unix_ms BIGINT NOT NULL,
    key_id TEXT,
    tenant TEXT,
    action TEXT NOT NULL,
    object TEXT,
    outcome TEXT NOT NULL,
    request_id TEXT NOT NULL,
    remote TEXT
);
CREATE INDEX audit_of_tenant ON audit (tenant, id);

CREATE TABLE operations (
    id TEXT NOT NULL PRIMARY KEY,
    kind TEXT NOT NULL,
    tenant TEXT NOT NULL,
    key_id TEXT NOT NULL,
    idempotency_key TEXT,
    request_digest TEXT NOT NULL,
    wanted TEXT,
    state TEXT NOT NULL,
    sandbox TEXT,
    template TEXT,
    error TEXT,
    progress TEXT NOT NULL,
    created_unix_ms BIGINT NOT NULL,
    ended_unix_ms BIGINT,
    UNIQUE (tenant, idempotency_key)
);
CREATE INDEX operations_in_order ON operations (created_unix_ms, id);
CREATE INDEX operations_of_tenant ON operations (tenant, created_unix_ms, id);
CREATE INDEX operations_by_end ON operations (ended_unix_ms);

CREATE TABLE sandboxes (
    host TEXT NOT NULL,
    id TEXT NOT NULL,
    tenant TEXT NOT NULL,
    key_id TEXT,
    state TEXT NOT NULL,
    revision BIGINT NOT NULL,
    created_unix_ms BIGINT NOT NULL,
    why TEXT,
    ended_unix_ms BIGINT,
    PRIMARY KEY (host, id)
);
CREATE INDEX sandboxes_by_id ON sandboxes (id);
CREATE INDEX sandboxes_by_end ON sandboxes (ended_unix_ms);

-- Commands, as far as they were seen. `run` is the server that saw it begin: what has no end, and is another's, nobody sees end.
CREATE TABLE execs (
    sandbox TEXT NOT NULL,
    started_unix_ms BIGINT NOT NULL,
    pid BIGINT NOT NULL,
    host TEXT NOT NULL,
    run TEXT NOT NULL,
    command TEXT NOT NULL,
    output_bytes BIGINT NOT NULL,
    ended_unix_ms BIGINT,
    exit TEXT,
    PRIMARY KEY (sandbox, started_unix_ms, pid)
);
CREATE INDEX execs_of_host ON execs (host, sandbox);
