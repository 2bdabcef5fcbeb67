//! Generates the Connect RPC code of `proto/envd/*.proto` and `proto/hostagent/*.proto`, each with the feature that is
//! named after it; does nothing without them.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    #[cfg(feature = "envd")]
    connect::generate(&connect::ENVD);
    #[cfg(feature = "hostagent")]
    connect::generate(&connect::HOSTAGENT);
}

#[cfg(feature = "connect")]
mod connect {
    use std::path::PathBuf;

    use buffa_codegen::BytesRepr;
    use connectrpc_build::{CodeGenConfig, Config};

    /// One folder of `proto/`, and what is made of it.
    pub struct Wire {
        folder: &'static str,
        files: &'static [&'static str],
        /// Files of others that it names: not among those that code is made from, so the generator does not name them to
        /// cargo.
        names: &'static [&'static str],
        client_feature: &'static str,
        output: &'static str,
    }

    #[cfg(feature = "envd")]
    pub const ENVD: Wire = Wire {
        folder: "envd",
        files: &["process.proto", "filesystem.proto"],
        names: &["google/protobuf/timestamp.proto"],
        client_feature: "envd-client",
        output: "_envd.rs",
    };

    #[cfg(feature = "hostagent")]
    pub const HOSTAGENT: Wire = Wire {
        folder: "hostagent",
        files: &["agent.proto"],
        names: &[],
        client_feature: "hostagent-client",
        output: "_hostagent.rs",
    };

    /// A failure here is a broken .proto file or a missing protoc: the build ends with protoc's own words.
    pub fn generate(wire: &Wire) {
        let root = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("../../proto");
        let folder = root.join(wire.folder);
        for name in wire.names {
            println!("cargo:rerun-if-changed={}", root.join(name).display());
        }
        let files: Vec<PathBuf> = wire.files.iter().map(|name| folder.join(name)).collect();
        let result = Config::new()
            .buffa_config(messages())
            .client_feature_name(wire.client_feature)
            .files(&files)
            .includes(&[&folder, &root])
            .include_file(wire.output)
            .compile();
        if let Err(error) = result {
            panic!(
                "cannot generate the code of proto/{} (Debian package protobuf-compiler has protoc): {error:#}",
                wire.folder
            );
        }
    }

    /// JSON beside binary, as E2B's clients speak nothing else; `bytes` as shared buffers, so that output is not
    /// copied on its way; unknown fields dropped, as nobody here passes a message on.
    fn messages() -> CodeGenConfig {
        let mut config = CodeGenConfig::default();
        config.generate_json = true;
        config.generate_views = true;
        config.preserve_unknown_fields = false;
        config.emit_register_fn = false;
        config.bytes_fields.push((".".to_owned(), BytesRepr::Bytes));
        config
    }
}
