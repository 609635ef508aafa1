// Package stack starts the real servers that tests need: Kafka (one node or several), Cassandra with password authentication, and
// DynamoDB Local, each a Java process made of jars that Maven fetches.
//
// A test asks for a server in one of two ways. [Shared] gives the address of a server that other tests use too: such a test keeps to
// names of its own ([Unique]) and never stops it. [Own] and [OwnKafka] start servers for one test, which may stop, kill, pause and
// restart them.
//
// The addresses of shared servers come from the environment when RESTANTE_TEST_KAFKA, RESTANTE_TEST_CASSANDRA or RESTANTE_TEST_DYNAMODB
// is set, as "make test" and "make servers" do it; otherwise each test process starts its own the first time a test asks. Without Java
// or Maven these tests are skipped, unless RESTANTE_REQUIRE_SERVERS is set: then they fail.
//
// The jars, and archives of their loaded classes that halve the start, are made once and kept in RESTANTE_STACK_CACHE, or in
// restante/stack below the user's cache directory. On two cores that cost 80 s of their time once for all three kinds. After that DynamoDB
// Local serves 2 to 4 s after its start, Kafka after 2 to 5 s (three nodes: 4 to 8 s) and Cassandra after 5 to 14 s, or 30 s where much
// else runs. No server outlives the process that started it, however that ends.
package stack
