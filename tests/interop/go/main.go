// Reads messages as JSON lines, and writes what the CloudEvents SDK makes of each.
package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os"
	"time"

	"github.com/IBM/sarama"
	"github.com/cloudevents/sdk-go/protocol/kafka_sarama/v2"
	"github.com/cloudevents/sdk-go/protocol/nats_jetstream/v2"
	"github.com/cloudevents/sdk-go/v2/binding"
	"github.com/cloudevents/sdk-go/v2/event"
	cehttp "github.com/cloudevents/sdk-go/v2/protocol/http"
	"github.com/nats-io/nats.go"
)

type message struct {
	Sink        string            `json:"sink"`
	Mode        string            `json:"mode"`
	ContentType *string           `json:"content_type"`
	Headers     map[string]string `json:"headers"`
	Body        []byte            `json:"body"`
}

type shown struct {
	Attributes map[string]string `json:"attributes"`
	Data       json.RawMessage   `json:"data,omitempty"`
	Bytes      []byte            `json:"bytes,omitempty"`
}

type answer struct {
	Events []shown `json:"events,omitempty"`
	Error  string  `json:"error,omitempty"`
}

func events(m message) ([]event.Event, error) {
	ctx := context.Background()
	var read binding.Message
	switch m.Sink {
	case "kafka":
		record := sarama.ConsumerMessage{Value: m.Body}
		for name, value := range m.Headers {
			record.Headers = append(record.Headers, &sarama.RecordHeader{Key: []byte(name), Value: []byte(value)})
		}
		if m.ContentType != nil {
			record.Headers = append(record.Headers, &sarama.RecordHeader{Key: []byte("content-type"), Value: []byte(*m.ContentType)})
		}
		read = kafka_sarama.NewMessageFromConsumerMessage(&record)
	case "nats":
		headers := nats.Header{}
		for name, value := range m.Headers {
			headers[name] = []string{value}
		}
		if m.ContentType != nil {
			headers["Content-Type"] = []string{*m.ContentType}
		}
		read = nats_jetstream.NewMessage(&nats.Msg{Header: headers, Data: m.Body})
	default:
		headers := http.Header{}
		for name, value := range m.Headers {
			headers.Set(name, value)
		}
		if m.ContentType != nil {
			headers.Set("Content-Type", *m.ContentType)
		}
		read = cehttp.NewMessage(headers, io.NopCloser(bytes.NewReader(m.Body)))
	}
	if m.Mode == "batch" {
		if m.Sink == "http" {
			return binding.ToEvents(ctx, read, bytes.NewReader(m.Body))
		}
		// The other bindings know no batches.
		var all []event.Event
		err := json.Unmarshal(m.Body, &all)
		return all, err
	}
	one, err := binding.ToEvent(ctx, read)
	if err != nil {
		return nil, err
	}
	return []event.Event{*one}, one.Validate()
}

func show(e event.Event) shown {
	attributes := map[string]string{"specversion": e.SpecVersion(), "id": e.ID(), "source": e.Source(), "type": e.Type()}
	add := func(name, value string) {
		if value != "" {
			attributes[name] = value
		}
	}
	add("subject", e.Subject())
	add("datacontenttype", e.DataContentType())
	add("dataschema", e.DataSchema())
	if !e.Time().IsZero() {
		add("time", e.Time().Format(time.RFC3339Nano))
	}
	for name, value := range e.Extensions() {
		// The binding adds where the record was.
		if name != "kafkatopic" && name != "kafkapartition" && name != "kafkaoffset" {
			attributes[name] = fmt.Sprint(value)
		}
	}
	if json.Valid(e.Data()) && !e.DataBase64 {
		return shown{Attributes: attributes, Data: e.Data()}
	}
	return shown{Attributes: attributes, Bytes: e.Data()}
}

func main() {
	lines := bufio.NewScanner(os.Stdin)
	lines.Buffer(nil, 1<<24)
	out := json.NewEncoder(os.Stdout)
	for lines.Scan() {
		var m message
		var said answer
		err := json.Unmarshal(lines.Bytes(), &m)
		if err == nil {
			var all []event.Event
			all, err = events(m)
			for _, one := range all {
				said.Events = append(said.Events, show(one))
			}
		}
		if err != nil {
			said = answer{Error: err.Error()}
		}
		if err := out.Encode(said); err != nil {
			os.Exit(1)
		}
	}
}
