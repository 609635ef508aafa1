package exhook

import (
	"bytes"
	"testing"

	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"

	"github.com/restante/restante/mqtt/exhook/exhookpb"
)

func TestCodecForgetsThePassword(t *testing.T) {
	t.Parallel()
	info := protowire.AppendString(protowire.AppendTag(nil, 2, protowire.BytesType), "c")
	info = protowire.AppendString(protowire.AppendTag(info, 4, protowire.BytesType), "open sesame")
	request := protowire.AppendBytes(protowire.AppendTag(nil, 1, protowire.BytesType), info)
	var r exhookpb.ClientConnectedRequest
	if err := (codec{}).Unmarshal(request, &r); err != nil {
		t.Fatal(err)
	}
	if got := string(r.GetClientinfo().GetClientid()); got != "c" {
		t.Errorf("client id %q", got)
	}
	again, err := proto.Marshal(&r)
	if err != nil {
		t.Fatal(err)
	}
	if bytes.Contains(again, []byte("sesame")) {
		t.Errorf("the request still holds the password: %q", again)
	}
}

func TestCodecRefusesWhatIsNoMessage(t *testing.T) {
	t.Parallel()
	if _, err := (codec{}).Marshal("text"); err == nil {
		t.Error("text was encoded")
	}
	if err := (codec{}).Unmarshal(nil, new(string)); err == nil {
		t.Error("text was decoded")
	}
}
