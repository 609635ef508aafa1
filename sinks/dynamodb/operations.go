package dynamodb

// Operations lists the operations of the service that a store uses, by the names that [Request] has.
func Operations() []string {
	return []string{
		"BatchExecuteStatement", "BatchGetItem", "BatchWriteItem", "CreateTable", "DeleteItem", "DescribeTable",
		"DescribeTimeToLive", "GetItem", "PutItem", "Query", "UpdateItem", "UpdateTimeToLive",
	}
}
