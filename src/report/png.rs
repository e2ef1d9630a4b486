//! Plots as pictures, for papers: the same drawings, with a font of our own, so that a machine without any draws the same.

use std::sync::Arc;

use resvg::tiny_skia::{Pixmap, Transform};
use resvg::usvg::{Options, Tree, fontdb};

use super::Error;
use super::plot::Plot;

/// Pixels of the picture for one of the drawing.
const SCALE: f32 = 2.0;

/// Draws plots into pictures.
#[derive(Debug)]
pub struct Painter {
    options: Options<'static>,
}

impl Default for Painter {
    fn default() -> Self {
        let mut fonts = fontdb::Database::new();
        for font in [dejavu::sans::regular(), dejavu::sans::bold()] {
            fonts.load_font_data(font.to_vec());
        }
        let options =
            Options { font_family: "DejaVu Sans".into(), fontdb: Arc::new(fonts), ..Options::default() };
        Self { options }
    }
}

impl Painter {
    /// The plot as the bytes of a PNG file, in light colours, two pixels for one.
    ///
    /// # Errors
    /// [`Error::Picture`] where the drawing is none, which would be a fault of this crate.
    pub fn png(&self, plot: &Plot) -> Result<Vec<u8>, Error> {
        let fail = |why: String| Error::Picture { plot: plot.id.clone(), why };
        let tree = Tree::from_str(&plot.standalone(), &self.options).map_err(|e| fail(e.to_string()))?;
        let size = tree.size();
        let [width, height] = [size.width(), size.height()].map(|x| (SCALE * x).ceil() as u32);
        let mut pixels =
            Pixmap::new(width, height).ok_or_else(|| fail(format!("{width} x {height} pixels")))?;
        resvg::render(&tree, Transform::from_scale(SCALE, SCALE), &mut pixels.as_mut());
        pixels.encode_png().map_err(|e| fail(e.to_string()))
    }
}
