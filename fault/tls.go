package fault

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"strings"
)

// TLSAdvice is what to do about a failed handshake, in the words of the configuration: at is the path of its keys ca_file, cert_file,
// key_file and server_name. It is "" for any other error. A server that refuses a client's certificate often cuts the connection
// without a word: that looks like any other cut, and is not told.
func TLSAdvice(err error, at string) string {
	if _, notTLS := errors.AsType[tls.RecordHeaderError](err); notTLS {
		return "the port is one without TLS: name another, or switch TLS off"
	}
	if _, other := errors.AsType[x509.HostnameError](err); other {
		return "the certificate is for another name: put the address or " + at + ".server_name right"
	}
	if _, unknown := errors.AsType[x509.UnknownAuthorityError](err); unknown {
		return "put the authority that signed the server's certificate into " + at + ".ca_file"
	}
	if invalid, ok := errors.AsType[x509.CertificateInvalidError](err); ok && invalid.Reason == x509.Expired {
		return "have the server's certificate renewed, or put the clock of this machine right"
	}
	if _, bad := errors.AsType[*tls.CertificateVerificationError](err); bad {
		return "put " + at + ".ca_file right, or have the server's certificate renewed"
	}
	// An alert of the peer, which has no type of its own once a driver has put it into words.
	if err != nil && strings.Contains(err.Error(), "remote error: tls: ") {
		return "the server refuses this client: put " + at + ".cert_file and " + at + ".key_file right, of an authority that the server trusts"
	}
	return ""
}
