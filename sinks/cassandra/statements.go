package cassandra

// query names a statement.
type query int

const (
	insertMessage query = iota
	deleteMessage
	insertProps
	deleteProps
	insertAcked
	deleteAcked
	insertRetained
	deleteRetained
	connectClient
	disconnectClient
	insertSub
	deleteSub
	insertNode
	addLate
	addTokens
	setSeen
	setProps
	setLow
	setOthers
	selectMessages
	selectNewest
	selectProps
	selectLow
	selectRetained
	selectAcked
	selectPositions
	selectClient
	selectSubs
	selectNode
	selectNodes
	manyQueries
)

// queryTexts are the statements. Each write says its time: the driver's or the server's would be the clock's.
var queryTexts = [manyQueries]string{ //nolint:gosec // the tokens are no credentials
	insertMessage: `INSERT INTO {{keyspace}}.{{prefix}}mqtt_msg (topic, msgid, arrived, payload, qos, retain, sender) VALUES (?, ?, ?, ?, ?, ?, ?) USING TIMESTAMP ? AND TTL ?`,
	deleteMessage: `DELETE FROM {{keyspace}}.{{prefix}}mqtt_msg USING TIMESTAMP ? WHERE topic = ? AND msgid = ?`,
	insertProps:   `INSERT INTO {{keyspace}}.{{prefix}}mqtt_msg_props (topic, msgid, props, history) VALUES (?, ?, ?, ?) USING TIMESTAMP ? AND TTL ?`,
	deleteProps:   `DELETE FROM {{keyspace}}.{{prefix}}mqtt_msg_props USING TIMESTAMP ? WHERE topic = ? AND msgid = ?`,

	insertAcked: `INSERT INTO {{keyspace}}.{{prefix}}acked (clientid, topic, msgid) VALUES (?, ?, ?) USING TIMESTAMP ?`,
	deleteAcked: `DELETE FROM {{keyspace}}.{{prefix}}acked USING TIMESTAMP ? WHERE clientid = ? AND topic = ?`,

	insertRetained: `INSERT INTO {{keyspace}}.{{prefix}}mqtt_retain (topic, msgid, arrived, payload, qos, retain, sender, props) VALUES (?, ?, ?, ?, ?, ?, ?, ?) USING TIMESTAMP ? AND TTL ?`,
	deleteRetained: `DELETE FROM {{keyspace}}.{{prefix}}mqtt_retain USING TIMESTAMP ? WHERE topic = ?`,

	connectClient:    `INSERT INTO {{keyspace}}.{{prefix}}mqtt_client (clientid, state, node, online_at, offline_at) VALUES (?, 1, ?, ?, ?) USING TIMESTAMP ?`,
	disconnectClient: `INSERT INTO {{keyspace}}.{{prefix}}mqtt_client (clientid, state, offline_at) VALUES (?, 0, ?) USING TIMESTAMP ?`,

	insertSub: `INSERT INTO {{keyspace}}.{{prefix}}mqtt_sub (clientid, topic, qos) VALUES (?, ?, ?) USING TIMESTAMP ?`,
	deleteSub: `DELETE FROM {{keyspace}}.{{prefix}}mqtt_sub USING TIMESTAMP ? WHERE clientid = ? AND topic = ?`,

	insertNode: `INSERT INTO {{keyspace}}.{{prefix}}mqtt_topic_node (parent, level, leaf, inner) VALUES (?, ?, ?, ?) USING TIMESTAMP ? AND TTL ?`,
	addLate:    `UPDATE {{keyspace}}.{{prefix}}mqtt_topic_low USING TIMESTAMP ? AND TTL ? SET late = late + ? WHERE topic = ?`,
	addTokens:  `UPDATE {{keyspace}}.{{prefix}}mqtt_topic_low USING TIMESTAMP ? AND TTL ? SET tokens = tokens + ? WHERE topic = ?`,
	setSeen:    `UPDATE {{keyspace}}.{{prefix}}mqtt_topic_low USING TIMESTAMP ? AND TTL ? SET seen = seen + ? WHERE topic = ?`,
	setProps:   `UPDATE {{keyspace}}.{{prefix}}mqtt_topic_low USING TIMESTAMP ? AND TTL ? SET props = true WHERE topic = ?`,
	setLow:     `UPDATE {{keyspace}}.{{prefix}}mqtt_topic_low USING TIMESTAMP ? AND TTL ? SET low = ? WHERE topic = ?`,
	setOthers:  `UPDATE {{keyspace}}.{{prefix}}mqtt_topic_low USING TIMESTAMP ? AND TTL ? SET others = ? WHERE topic = ?`,

	selectMessages: `SELECT msgid, arrived, payload, qos, retain, sender, TTL(payload), WRITETIME(payload) FROM {{keyspace}}.{{prefix}}mqtt_msg
		WHERE topic = ? AND msgid > ? AND msgid <= ? ORDER BY msgid ASC LIMIT ?`,
	selectNewest: `SELECT msgid, arrived, payload, qos, retain, sender, TTL(payload), WRITETIME(payload) FROM {{keyspace}}.{{prefix}}mqtt_msg
		WHERE topic = ? AND msgid > ? AND msgid <= ? ORDER BY msgid DESC LIMIT ?`,
	selectProps: `SELECT msgid, props, history FROM {{keyspace}}.{{prefix}}mqtt_msg_props WHERE topic = ? AND msgid IN ?`,
	selectLow:   `SELECT low, late, props, others, tokens, seen FROM {{keyspace}}.{{prefix}}mqtt_topic_low WHERE topic = ?`,
	selectRetained: `SELECT msgid, arrived, payload, qos, retain, sender, TTL(payload), WRITETIME(payload), props FROM {{keyspace}}.{{prefix}}mqtt_retain
		WHERE topic = ? ORDER BY msgid DESC LIMIT 1`,
	selectAcked:     `SELECT msgid FROM {{keyspace}}.{{prefix}}acked WHERE clientid = ? AND topic = ?`,
	selectPositions: `SELECT topic, msgid, WRITETIME(msgid) FROM {{keyspace}}.{{prefix}}acked WHERE clientid = ?`,
	selectClient:    `SELECT state, node, online_at, offline_at FROM {{keyspace}}.{{prefix}}mqtt_client WHERE clientid = ?`,
	selectSubs:      `SELECT topic, qos FROM {{keyspace}}.{{prefix}}mqtt_sub WHERE clientid = ?`,
	selectNode:      `SELECT level, leaf, inner FROM {{keyspace}}.{{prefix}}mqtt_topic_node WHERE parent = ? AND level = ?`,
	selectNodes:     `SELECT level, leaf, inner FROM {{keyspace}}.{{prefix}}mqtt_topic_node WHERE parent = ? AND level >= ? ORDER BY level ASC LIMIT ?`,
}
