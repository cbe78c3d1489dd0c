//! ServiceAccount tokens: JSON Web Tokens signed with ES256 (RFC 7515, RFC 7518), made by the TokenRequest
//! subresource and valid as long as their ServiceAccount, and the Pod they are bound to, exist.

use std::path::Path;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD as BASE64;
use ring::rand::SystemRandom;
use ring::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _, UnparsedPublicKey,
};
use rustls_pki_types::PrivatePkcs8KeyDer;
use rustls_pki_types::pem::PemObject as _;
use serde_json::{Value, json};
use time::OffsetDateTime;

use super::authn::User;
use crate::store::{Key, Store};

/// Whose tokens these are (`iss`), and whom they are for unless asked otherwise (`aud`).
pub const ISSUER: &str = "https://kubernetes.default.svc.cluster.local";

/// Signs and checks tokens.
pub struct Tokens {
    key: EcdsaKeyPair,
    random: SystemRandom,
}

/// The key could not be used.
#[derive(Debug, thiserror::Error)]
#[error(
    "{path}: not an ECDSA P-256 key in PKCS#8 PEM: {cause}; remove the PKI directory to have it made anew"
)]
pub struct KeyError {
    path: String,
    cause: String,
}

/// What a token is asked for.
pub struct Claims<'a> {
    /// Namespace of the ServiceAccount.
    pub namespace: &'a str,
    /// Name of the ServiceAccount.
    pub name: &'a str,
    /// Uid of the ServiceAccount.
    pub uid: &'a str,
    /// Audiences.
    pub audiences: Vec<String>,
    /// The object it is bound to: kind, name, uid.
    pub bound: Option<(String, String, String)>,
    /// Seconds it is valid.
    pub seconds: i64,
}

impl Tokens {
    /// Reads the key.
    pub fn open(path: &Path) -> Result<Self, KeyError> {
        let failed = |cause: String| KeyError { path: path.display().to_string(), cause };
        let der = PrivatePkcs8KeyDer::from_pem_file(path).map_err(|e| failed(e.to_string()))?;
        let random = SystemRandom::new();
        let key = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, der.secret_pkcs8_der(), &random)
            .map_err(|e| failed(e.to_string()))?;
        Ok(Self { key, random })
    }

    /// A signed token, or nothing if the system has no randomness.
    pub fn sign(&self, claims: &Claims<'_>, now: OffsetDateTime) -> Option<String> {
        let now = now.unix_timestamp();
        let mut kubernetes = json!({
            "namespace": claims.namespace,
            "serviceaccount": {"name": claims.name, "uid": claims.uid},
        });
        if let Some((kind, name, uid)) = &claims.bound {
            kubernetes[kind.to_lowercase()] = json!({"name": name, "uid": uid});
        }
        let payload = json!({
            "iss": ISSUER,
            "sub": format!("system:serviceaccount:{}:{}", claims.namespace, claims.name),
            "aud": claims.audiences,
            "iat": now, "nbf": now, "exp": now + claims.seconds,
            "jti": uuid::Uuid::new_v4().to_string(),
            "kubernetes.io": kubernetes,
        });
        let header = json!({"alg": "ES256", "typ": "JWT"});
        let signed = format!("{}.{}", BASE64.encode(header.to_string()), BASE64.encode(payload.to_string()));
        let signature = self.key.sign(&self.random, signed.as_bytes()).ok()?;
        Some(format!("{signed}.{}", BASE64.encode(signature.as_ref())))
    }

    /// Whose token it is, if it is one of ours, valid now, for one of `audiences`, and what it is bound to exists.
    pub fn check(&self, token: &str, audiences: &[&str], store: &Store, now: OffsetDateTime) -> Option<User> {
        let (signed, signature) = token.rsplit_once('.')?;
        let (header, payload) = signed.split_once('.')?;
        let json = |part: &str| serde_json::from_slice::<Value>(&BASE64.decode(part).ok()?).ok();
        if json(header)?["alg"] != "ES256" {
            return None;
        }
        let public = UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, self.key.public_key().as_ref());
        public.verify(signed.as_bytes(), &BASE64.decode(signature).ok()?).ok()?;

        let payload = json(payload)?;
        let now = now.unix_timestamp();
        let in_time = payload["exp"].as_i64()? > now && payload["nbf"].as_i64()? <= now + 60;
        let for_us =
            payload["aud"].as_array()?.iter().filter_map(Value::as_str).any(|a| audiences.contains(&a));
        if payload["iss"] != ISSUER || !in_time || !for_us {
            return None;
        }
        let bound = &payload["kubernetes.io"];
        let namespace = bound["namespace"].as_str()?;
        let exists = |resource: &str, reference: &Value| {
            let name = reference["name"].as_str().unwrap_or_default();
            let found = store.get(&Key::new(resource, namespace, name));
            found.is_some_and(|object| object.value["metadata"]["uid"] == reference["uid"])
        };
        let account = &bound["serviceaccount"];
        if !exists("core/serviceaccounts", account)
            || (bound["pod"].is_object() && !exists("core/pods", &bound["pod"]))
            || (bound["secret"].is_object() && !exists("core/secrets", &bound["secret"]))
        {
            return None;
        }
        Some(User::service_account(namespace, account["name"].as_str()?, account["uid"].as_str()?))
    }
}
