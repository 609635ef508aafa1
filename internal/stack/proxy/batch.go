package proxy

import (
	"encoding/json"
	"math/rand/v2"
)

// withhold takes a part out of a batch: at least one of its requests, at times all. kept is the body of the others, nil when there are
// none; restore puts what was taken out into the answer as the service does.
type withhold func(body []byte, rng *rand.Rand) (kept []byte, restore func(answer []byte) ([]byte, error), err error)

//nolint:gochecknoglobals // never written
var batches = map[string]withhold{
	"BatchWriteItem":        withholdWrites,
	"BatchGetItem":          withholdKeys,
	"BatchExecuteStatement": withholdStatements,
}

type object = map[string]json.RawMessage

// split parts the requests by chance; the share that is taken out differs from call to call.
func split[T any](all []T, rng *rand.Rand) (kept, taken []T) {
	share := rng.Float64()
	for _, one := range all {
		if rng.Float64() < share {
			taken = append(taken, one)
		} else {
			kept = append(kept, one)
		}
	}
	if len(taken) == 0 && len(kept) > 0 {
		last := len(kept) - 1
		kept, taken = kept[:last], kept[last:]
	}
	return kept, taken
}

func withholdWrites(body []byte, rng *rand.Rand) ([]byte, func([]byte) ([]byte, error), error) {
	var request object
	var tables map[string][]json.RawMessage
	if err := decode(body, &request, "RequestItems", &tables); err != nil {
		return nil, nil, err
	}
	keptTables, takenTables := map[string][]json.RawMessage{}, map[string][]json.RawMessage{}
	for _, name := range sortedKeys(tables) {
		kept, taken := split(tables[name], rng)
		if len(kept) > 0 {
			keptTables[name] = kept
		}
		if len(taken) > 0 {
			takenTables[name] = taken
		}
	}
	restore := func(answer []byte) ([]byte, error) {
		var response object
		var left map[string][]json.RawMessage
		if err := decode(answer, &response, "UnprocessedItems", &left); err != nil {
			return nil, err
		}
		for name, requests := range left {
			takenTables[name] = append(takenTables[name], requests...)
		}
		return encode(response, "UnprocessedItems", takenTables)
	}
	if len(keptTables) == 0 {
		return nil, restore, nil
	}
	kept, err := encode(request, "RequestItems", keptTables)
	return kept, restore, err
}

func withholdKeys(body []byte, rng *rand.Rand) ([]byte, func([]byte) ([]byte, error), error) {
	var request object
	var tables map[string]object // each with Keys, and how to read them
	if err := decode(body, &request, "RequestItems", &tables); err != nil {
		return nil, nil, err
	}
	keptTables, takenTables := map[string]object{}, map[string]object{}
	for _, name := range sortedKeys(tables) {
		var keys []json.RawMessage
		if err := json.Unmarshal(tables[name]["Keys"], &keys); err != nil {
			return nil, nil, err
		}
		kept, taken := split(keys, rng)
		for to, part := range map[*map[string]object][]json.RawMessage{&keptTables: kept, &takenTables: taken} {
			if len(part) == 0 {
				continue
			}
			table, err := with(tables[name], "Keys", part)
			if err != nil {
				return nil, nil, err
			}
			(*to)[name] = table
		}
	}
	restore := func(answer []byte) ([]byte, error) {
		var response object
		var left map[string]object
		if err := decode(answer, &response, "UnprocessedKeys", &left); err != nil {
			return nil, err
		}
		for name, table := range left {
			merged, err := mergeKeys(takenTables[name], table)
			if err != nil {
				return nil, err
			}
			takenTables[name] = merged
		}
		if response["Responses"] == nil {
			response["Responses"] = json.RawMessage("{}")
		}
		return encode(response, "UnprocessedKeys", takenTables)
	}
	if len(keptTables) == 0 {
		return nil, restore, nil
	}
	kept, err := encode(request, "RequestItems", keptTables)
	return kept, restore, err
}

func mergeKeys(taken, left object) (object, error) {
	var keys, more []json.RawMessage
	if err := json.Unmarshal(left["Keys"], &more); err != nil {
		return nil, err
	}
	if taken != nil {
		if err := json.Unmarshal(taken["Keys"], &keys); err != nil {
			return nil, err
		}
	}
	return with(left, "Keys", append(keys, more...))
}

func withholdStatements(body []byte, rng *rand.Rand) ([]byte, func([]byte) ([]byte, error), error) {
	var request object
	var statements []json.RawMessage
	if err := decode(body, &request, "Statements", &statements); err != nil {
		return nil, nil, err
	}
	places := make([]int, len(statements))
	for i := range places {
		places[i] = i
	}
	keptPlaces, takenPlaces := split(places, rng)
	// Of each statement its own error.
	codes := []string{"ProvisionedThroughputExceeded", "ThrottlingError", "RequestLimitExceeded", "InternalServerError"}
	all := make([]json.RawMessage, len(statements))
	for _, i := range takenPlaces {
		refusal, err := json.Marshal(map[string]any{"Error": map[string]string{
			"Code": codes[rng.IntN(len(codes))], "Message": "The proxy of the tests did not run it.",
		}})
		if err != nil {
			return nil, nil, err
		}
		all[i] = refusal
	}
	restore := func(answer []byte) ([]byte, error) {
		var response object
		var responses []json.RawMessage
		if err := decode(answer, &response, "Responses", &responses); err != nil {
			return nil, err
		}
		for n, i := range keptPlaces {
			if n < len(responses) {
				all[i] = responses[n]
			}
		}
		return encode(response, "Responses", all)
	}
	if len(keptPlaces) == 0 {
		return nil, restore, nil
	}
	kept := make([]json.RawMessage, len(keptPlaces))
	for n, i := range keptPlaces {
		kept[n] = statements[i]
	}
	sent, err := encode(request, "Statements", kept)
	return sent, restore, err
}
