package sinks

import (
	"encoding/json"

	"github.com/restante/restante/event"
)

// properties is the JSON form of a message's MQTT 5 properties, the same in every store that keeps them in one text.
type properties struct {
	User            [][2]string `json:"user,omitempty"`
	ContentType     string      `json:"content_type,omitempty"`
	ResponseTopic   string      `json:"response_topic,omitempty"`
	CorrelationData []byte      `json:"correlation_data,omitempty"`
	PayloadFormat   byte        `json:"payload_format,omitempty"`
}

// PropertiesText is the JSON of a message's properties as stores keep it, "" when there are none.
func PropertiesText(p event.Properties) (string, error) {
	if p.IsZero() {
		return "", nil
	}
	j := properties{ContentType: p.ContentType, ResponseTopic: p.ResponseTopic, CorrelationData: p.CorrelationData, PayloadFormat: p.PayloadFormat}
	for _, u := range p.User {
		j.User = append(j.User, [2]string{u.Key, u.Value})
	}
	b, err := json.Marshal(j)
	return string(b), err
}

// ParseProperties reads what [PropertiesText] wrote.
func ParseProperties(text string) (event.Properties, error) {
	if text == "" {
		return event.Properties{}, nil
	}
	var j properties
	if err := json.Unmarshal([]byte(text), &j); err != nil {
		return event.Properties{}, err
	}
	p := event.Properties{ContentType: j.ContentType, ResponseTopic: j.ResponseTopic, CorrelationData: j.CorrelationData, PayloadFormat: j.PayloadFormat}
	for _, u := range j.User {
		p.User = append(p.User, event.UserProperty{Key: u[0], Value: u[1]})
	}
	return p, nil
}
