-- The tables of a Restante store. The first two have the names and columns of the tables of EMQX's "save offline messages to
-- Cassandra"; the others hold what those have no place for. Times are UTC text with ms; stamps and expiry are µs since 1970.

-- Stored messages. msgid is 32 hex digits in time order; payload is text when it is UTF-8 without NUL, else a blob.
CREATE TABLE mqtt_msg (
    topic   text NOT NULL,
    msgid   text NOT NULL,
    arrived text NOT NULL,
    payload text NOT NULL,
    qos     int  NOT NULL,
    retain  int  NOT NULL,
    sender  text NOT NULL,
    PRIMARY KEY (topic, msgid)
) WITHOUT ROWID;

-- The newest acknowledged message of a client and a topic.
CREATE TABLE acked (
    clientid text NOT NULL,
    topic    text NOT NULL,
    msgid    text NOT NULL,
    PRIMARY KEY (clientid, topic)
) WITHOUT ROWID;

-- What else is known of a stored message; no row = never expires, no properties, not for the record only.
CREATE TABLE mqtt_msg_props (
    topic   text NOT NULL,
    msgid   text NOT NULL,
    expires int,
    history int  NOT NULL,
    props   text,
    PRIMARY KEY (topic, msgid)
) WITHOUT ROWID;

-- The write stamp of a row of acked, where it is not the time of its msgid.
CREATE TABLE mqtt_acked_stamp (
    clientid text NOT NULL,
    topic    text NOT NULL,
    stamp    int  NOT NULL,
    PRIMARY KEY (clientid, topic)
) WITHOUT ROWID;

-- Retained messages, at the time of their msgid.
CREATE TABLE mqtt_retain (
    topic   text NOT NULL PRIMARY KEY,
    msgid   text NOT NULL,
    arrived text NOT NULL,
    payload text NOT NULL,
    qos     int  NOT NULL,
    retain  int  NOT NULL,
    sender  text NOT NULL,
    expires int,
    props   text
) WITHOUT ROWID;

-- Clients. up_stamp, node and online_at are what the latest connect said, down_stamp and down_at what the latest disconnect
-- said; state and offline_at follow from them.
CREATE TABLE mqtt_client (
    clientid   text NOT NULL PRIMARY KEY,
    state      int  NOT NULL,
    node       text NOT NULL,
    online_at  text NOT NULL,
    offline_at text NOT NULL,
    up_stamp   int  NOT NULL,
    down_stamp int  NOT NULL,
    down_at    text NOT NULL
) WITHOUT ROWID;

-- Subscriptions.
CREATE TABLE mqtt_sub (
    clientid text NOT NULL,
    topic    text NOT NULL,
    qos      int  NOT NULL,
    stamp    int  NOT NULL,
    PRIMARY KEY (clientid, topic)
) WITHOUT ROWID;

-- The topic index: one row a level of a topic. leaf = a topic ends here, inner = topics go on below.
CREATE TABLE mqtt_topic_node (
    parent  text NOT NULL,
    level   text NOT NULL,
    leaf    int  NOT NULL,
    inner   int  NOT NULL,
    seen_at int  NOT NULL,
    PRIMARY KEY (parent, level)
) WITHOUT ROWID;

-- Tombstones: a removed row of the table tab, so that a late write of something older stays without effect.
CREATE TABLE mqtt_gone (
    tab   text NOT NULL,
    part  text NOT NULL,
    clust text NOT NULL,
    stamp int  NOT NULL,
    since int  NOT NULL,
    PRIMARY KEY (tab, part, clust)
) WITHOUT ROWID;

-- Written and read back by the check.
CREATE TABLE mqtt_check (
    id int NOT NULL PRIMARY KEY,
    at int NOT NULL
) WITHOUT ROWID;
