//! A certificate authority for one control plane, with the certificates that tests ask it for.

use std::net::Ipv4Addr;

use base64::{Engine, engine::general_purpose::URL_SAFE_NO_PAD as BASE64_URL};
use k8s_openapi::ByteString;
use rcgen::{
    BasicConstraints, Certificate, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, SignatureAlgorithm, SigningKey, date_time_ymd,
};

/// A certificate with its private key, both as PEM.
#[derive(Clone, Debug)]
pub(crate) struct Identity {
    /// The certificate.
    pub(crate) certificate: String,
    /// Its private key (PKCS #8).
    pub(crate) key: String,
}

/// Signs the certificates of the API server and of its clients.
pub(crate) struct Authority {
    /// How it and all for whom it signs sign.
    algorithm: &'static SignatureAlgorithm,
    issuer: Issuer<'static, KeyPair>,
    certificate: Certificate,
}

impl Authority {
    /// Makes an authority of its own, so that no other control plane trusts its certificates.
    pub(crate) fn new() -> Self {
        Self::that_signs_by(&rcgen::PKCS_ECDSA_P256_SHA256)
    }

    /// The same, with keys for this algorithm.
    pub(crate) fn that_signs_by(algorithm: &'static SignatureAlgorithm) -> Self {
        let mut params = CertificateParams::default();
        params
            .distinguished_name
            .push(DnType::CommonName, "test-ca");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![
            KeyUsagePurpose::KeyCertSign,
            KeyUsagePurpose::DigitalSignature,
        ];
        let key = generate_key(algorithm);
        let certificate = params
            .self_signed(&key)
            .expect("sign the authority's certificate");
        Self {
            algorithm,
            issuer: Issuer::new(params, key),
            certificate,
        }
    }

    /// The authority's certificate as PEM: what a client must trust.
    pub(crate) fn certificate(&self) -> String {
        self.certificate.pem()
    }

    /// A certificate for a server on this machine, which is also called by these addresses.
    pub(crate) fn server(&self, addresses: &[Ipv4Addr]) -> Identity {
        let mut names = ["localhost", "127.0.0.1", "::1"].map(String::from).to_vec();
        names.extend(addresses.iter().map(Ipv4Addr::to_string));
        let mut params = CertificateParams::new(names).expect("the names are valid");
        params
            .distinguished_name
            .push(DnType::CommonName, "kube-apiserver");
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        self.issue(params)
    }

    /// A certificate of a server of this name, changed as asked: this authority's, or one that is its own.
    pub(crate) fn odd_server(
        &self,
        name: &str,
        is_its_own_authority: bool,
        change: impl Fn(&mut CertificateParams),
    ) -> Identity {
        let mut params = CertificateParams::new([name.to_owned()]).expect("the name is valid");
        change(&mut params);
        if !is_its_own_authority {
            return self.issue(params);
        }
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = generate_key(self.algorithm);
        let certificate = params.self_signed(&key).expect("sign a certificate");
        Identity {
            certificate: certificate.pem(),
            key: key.serialize_pem(),
        }
    }

    /// A client certificate, which the API server takes for `user`, a member of `groups`.
    pub(crate) fn client(&self, user: &str, groups: &[&str]) -> Identity {
        self.issue(client_params(user, groups))
    }

    /// A client certificate that was valid once.
    pub(crate) fn expired_client(&self, user: &str) -> Identity {
        let mut params = client_params(user, &[]);
        params.not_before = date_time_ymd(2020, 1, 1);
        params.not_after = date_time_ymd(2020, 1, 2);
        self.issue(params)
    }

    /// A client certificate in the format of X.509 version 1, as some distributions of Kubernetes
    /// issue them. Go accepts it, rustls doesn't.
    ///
    /// No library writes this format any more. It is version 3 without the version number, which is
    /// the first field, and without the extensions, which are the last; so we take them out of a
    /// certificate and sign it again.
    pub(crate) fn x509_v1_client(&self, user: &str) -> Identity {
        let (certificate, key) = self.sign(client_params(user, &[]));
        let [body, algorithm, _signature] = &der_fields(der_content(certificate.der()))[..] else {
            panic!("a certificate has three fields (RFC 5280, 4.1)");
        };
        let fields: Vec<&[u8]> = der_fields(der_content(body))
            .into_iter()
            .filter(|field| ![DER_VERSION, DER_EXTENSIONS].contains(&field[0]))
            .collect();
        let body = der(DER_SEQUENCE, &fields.concat());
        let signature = self.issuer.key().sign(&body).expect("sign a certificate");
        // The leading zero is the number of unused bits of the bit string.
        let signature = der(DER_BIT_STRING, &[&[0], &signature[..]].concat());
        let certificate = der(DER_SEQUENCE, &[&body, *algorithm, &signature].concat());
        Identity {
            certificate: pem_certificate(&certificate),
            key: key.serialize_pem(),
        }
    }

    fn issue(&self, params: CertificateParams) -> Identity {
        let (certificate, key) = self.sign(params);
        Identity {
            certificate: certificate.pem(),
            key: key.serialize_pem(),
        }
    }

    fn sign(&self, params: CertificateParams) -> (Certificate, KeyPair) {
        let key = generate_key(self.algorithm);
        let certificate = params
            .signed_by(&key, &self.issuer)
            .expect("sign a certificate");
        (certificate, key)
    }
}

/// A key to sign tokens of service accounts with, and the public key to check them, as PEM.
pub(crate) struct TokenKey {
    /// The private key (PKCS #8).
    pub(crate) private: String,
    /// The public key. The API server wouldn't find it in a private key of this format.
    pub(crate) public: String,
}

impl TokenKey {
    /// Generates an ECDSA key: tokens are signed with ES256.
    pub(crate) fn new() -> Self {
        let key = generate_key(&rcgen::PKCS_ECDSA_P256_SHA256);
        Self {
            private: key.serialize_pem(),
            public: key.public_key_pem(),
        }
    }

    /// A token with these claims, signed as the API server signs one (RFC 7515 and 7518, ES256).
    pub(crate) fn sign(private: &str, claims: &serde_json::Value) -> String {
        let key = KeyPair::from_pem(private).expect("a key of this type");
        let encode = |bytes: &[u8]| BASE64_URL.encode(bytes);
        let header = encode(br#"{"alg":"ES256"}"#);
        let signed = format!("{header}.{}", encode(claims.to_string().as_bytes()));
        let signature = key.sign(signed.as_bytes()).expect("sign a token");
        format!("{signed}.{}", encode(&without_der(&signature)))
    }
}

/// The two numbers of an ECDSA signature, each of 32 bytes, out of a sequence of two integers. DER puts a
/// zero before a number whose first bit is set, and leaves those out with which it begins.
fn without_der(signature: &[u8]) -> Vec<u8> {
    let mut rest = &signature[2..];
    let mut plain = Vec::new();
    for _ in 0..2 {
        let (number, others) = rest[2..].split_at(rest[1].into());
        let first = number.len().saturating_sub(32);
        plain.extend(vec![0; 32_usize.saturating_sub(number.len())]);
        plain.extend_from_slice(&number[first..]);
        rest = others;
    }
    plain
}

/// Base64 for the fields of a kubeconfig whose names end with `-data`.
pub(crate) fn base64(data: &str) -> serde_json::Value {
    serde_json::to_value(ByteString(data.into())).expect("bytes can be serialized")
}

/// Kubernetes takes the user's name from the common name, and groups from the organizations.
fn client_params(user: &str, groups: &[&str]) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, user);
    for group in groups {
        params
            .distinguished_name
            .push(DnType::OrganizationName, *group);
    }
    params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
    params
}

fn generate_key(algorithm: &'static SignatureAlgorithm) -> KeyPair {
    KeyPair::generate_for(algorithm).expect("generate an ECDSA key")
}

// === DER: a tag, a length, and that many bytes ===

fn der(tag: u8, content: &[u8]) -> Vec<u8> {
    let length = u16::try_from(content.len()).expect("a certificate is shorter than 64 KiB");
    // A length of two bytes, announced by 0x82, unless it fits into seven bits or one byte: DER
    // allows the shortest form only.
    let [high, low] = length.to_be_bytes();
    let header = match length {
        0..=0x7f => vec![tag, low],
        0x80..=0xff => vec![tag, 0x81, low],
        0x100.. => vec![tag, 0x82, high, low],
    };
    [header.as_slice(), content].concat()
}

/// The content of the first value in `bytes`.
fn der_content(bytes: &[u8]) -> &[u8] {
    let (header, length) = der_header(bytes);
    &bytes[header..header + length]
}

/// The values that follow each other in `bytes`, each with its header.
fn der_fields(mut bytes: &[u8]) -> Vec<&[u8]> {
    let mut fields = Vec::new();
    while !bytes.is_empty() {
        let (header, length) = der_header(bytes);
        let (field, rest) = bytes.split_at(header + length);
        fields.push(field);
        bytes = rest;
    }
    fields
}

/// The lengths of the header and of the content of the first value in `bytes`.
fn der_header(bytes: &[u8]) -> (usize, usize) {
    match bytes[1] {
        0x81 => (3, usize::from(bytes[2])),
        0x82 => (4, usize::from(u16::from_be_bytes([bytes[2], bytes[3]]))),
        length => (2, usize::from(length)),
    }
}

fn pem_certificate(der: &[u8]) -> String {
    let base64 = serde_json::to_value(ByteString(der.into())).expect("bytes can be serialized");
    let base64 = base64.as_str().expect("bytes are serialized as a string");
    let lines: Vec<&str> = (0..base64.len())
        .step_by(64)
        .map(|start| &base64[start..base64.len().min(start + 64)])
        .collect();
    format!(
        "-----BEGIN CERTIFICATE-----\n{}\n-----END CERTIFICATE-----\n",
        lines.join("\n")
    )
}

const DER_BIT_STRING: u8 = 0x03;
const DER_SEQUENCE: u8 = 0x30;
const DER_VERSION: u8 = 0xa0;
const DER_EXTENSIONS: u8 = 0xa3;
