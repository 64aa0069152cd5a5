//! The types that tensors of a GGUF file have: their numbers, names and blocks.

use std::fmt;

macro_rules! kinds {
    ($($variant:ident $id:literal $name:literal $elements:literal x $bytes:literal;)*) => {
        /// How the elements of a tensor are stored, as ggml numbers its types.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
        #[expect(missing_docs, reason = "these are the format's own names")]
        #[non_exhaustive]
        pub enum TensorType {
            $($variant,)*
        }

        impl TensorType {
            /// The type with this number in a file.
            pub fn from_id(id: u32) -> Option<Self> {
                match id {
                    $($id => Some(Self::$variant),)*
                    _ => None,
                }
            }

            /// Its number in a file.
            pub fn id(self) -> u32 {
                match self {
                    $(Self::$variant => $id,)*
                }
            }

            /// Its name in the format's documents, such as `Q8_0`.
            pub fn name(self) -> &'static str {
                match self {
                    $(Self::$variant => $name,)*
                }
            }

            /// Elements in one block, and bytes of it. A row is a whole number of blocks.
            pub fn block(self) -> (u64, u64) {
                match self {
                    $(Self::$variant => ($elements, $bytes),)*
                }
            }
        }
    };
}

// Numbers and sizes as in the format's documents. Those that are missing between were given up by the format.
kinds! {
    F32 0 "F32" 1 x 4;
    F16 1 "F16" 1 x 2;
    Q4_0 2 "Q4_0" 32 x 18;
    Q4_1 3 "Q4_1" 32 x 20;
    Q5_0 6 "Q5_0" 32 x 22;
    Q5_1 7 "Q5_1" 32 x 24;
    Q8_0 8 "Q8_0" 32 x 34;
    Q8_1 9 "Q8_1" 32 x 40;
    Q2K 10 "Q2_K" 256 x 84;
    Q3K 11 "Q3_K" 256 x 110;
    Q4K 12 "Q4_K" 256 x 144;
    Q5K 13 "Q5_K" 256 x 176;
    Q6K 14 "Q6_K" 256 x 210;
    Q8K 15 "Q8_K" 256 x 292;
    Iq2Xxs 16 "IQ2_XXS" 256 x 66;
    Iq2Xs 17 "IQ2_XS" 256 x 74;
    Iq3Xxs 18 "IQ3_XXS" 256 x 98;
    Iq1S 19 "IQ1_S" 256 x 50;
    Iq4Nl 20 "IQ4_NL" 32 x 18;
    Iq3S 21 "IQ3_S" 256 x 110;
    Iq2S 22 "IQ2_S" 256 x 82;
    Iq4Xs 23 "IQ4_XS" 256 x 136;
    I8 24 "I8" 1 x 1;
    I16 25 "I16" 1 x 2;
    I32 26 "I32" 1 x 4;
    I64 27 "I64" 1 x 8;
    F64 28 "F64" 1 x 8;
    Iq1M 29 "IQ1_M" 256 x 56;
    Bf16 30 "BF16" 1 x 2;
    Tq1_0 34 "TQ1_0" 256 x 54;
    Tq2_0 35 "TQ2_0" 256 x 66;
    Mxfp4 39 "MXFP4" 32 x 17;
    Nvfp4 40 "NVFP4" 64 x 36;
    Q1_0 41 "Q1_0" 128 x 18;
}

impl TensorType {
    /// The types that are read as numbers.
    pub const READ: [Self; 14] = [
        Self::F32,
        Self::F16,
        Self::Bf16,
        Self::F64,
        Self::Q8_0,
        Self::Q4_0,
        Self::Q4_1,
        Self::Q5_0,
        Self::Q5_1,
        Self::Q2K,
        Self::Q3K,
        Self::Q4K,
        Self::Q5K,
        Self::Q6K,
    ];
    /// The types that are written.
    pub const WRITTEN: [Self; 3] = [Self::F32, Self::F16, Self::Q8_0];

    /// Bytes of a tensor of this type whose rows have `row` elements, and which has `elements` of them; none if its rows are not
    /// whole blocks, or the bytes more than can be counted.
    pub fn bytes(self, row: u64, elements: u64) -> Option<u64> {
        let (block, bytes) = self.block();
        row.is_multiple_of(block)
            .then(|| (elements / block).checked_mul(bytes))?
    }
}

impl fmt::Display for TensorType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The names of some types, as a sentence has them: "F32, F16 and Q8_0".
pub(crate) fn names(types: &[TensorType]) -> String {
    let names: Vec<_> = types.iter().map(|t| t.name()).collect();
    match names.split_last() {
        Some((last, rest)) if !rest.is_empty() => format!("{} and {last}", rest.join(", ")),
        _ => names.join(", "),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_type_is_found_by_its_number_and_reads_as_a_list() {
        let known: Vec<_> = (0..100).filter_map(|id| Some((id, TensorType::from_id(id)?))).collect();
        assert_eq!(known.len(), 34);
        assert!(known.iter().all(|(id, kind)| kind.id() == *id));
        assert_eq!(names(&TensorType::WRITTEN), "F32, F16 and Q8_0");
        assert_eq!(TensorType::Q6K.bytes(512, 1024), Some(840));
        assert_eq!(TensorType::Q6K.bytes(128, 1024), None, "rows of half a block");
        assert_eq!(
            TensorType::F64.bytes(1, u64::MAX),
            None,
            "more bytes than can be counted"
        );
    }
}
